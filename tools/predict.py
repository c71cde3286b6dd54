"""Masks of images: python tools/predict.py --model DIR --input PATH --output DIR (see --help)."""
import sys
from pathlib import Path

# The checkout beside this script wins over any installed copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'projects' / 'checkout'))

from sa2va_dpo.commands.predict import main  # noqa: E402
from sa2va_dpo.common.errors import cli_main  # noqa: E402

if __name__ == '__main__':
    cli_main(main)()
