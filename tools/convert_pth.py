"""Upstream trainer checkpoint to the released layout: python tools/convert_pth.py PTH BASE OUTPUT (see --help)."""
import sys
from pathlib import Path

# The checkout beside this script wins over any installed copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'projects' / 'checkout'))

from sa2va_dpo.commands.convert import main  # noqa: E402
from sa2va_dpo.common.errors import cli_main  # noqa: E402

if __name__ == '__main__':
    cli_main(main)()
