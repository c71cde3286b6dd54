"""An untrained tiny Sa2VA: python tools/make_tiny_checkpoint.py work_dirs/tiny_init --seed 0."""
import sys
from pathlib import Path

# The checkout beside this script wins over any installed copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'projects' / 'checkout'))

from sa2va_dpo.commands.tiny_checkpoint import main  # noqa: E402
from sa2va_dpo.common.errors import cli_main  # noqa: E402

if __name__ == '__main__':
    cli_main(main)()
