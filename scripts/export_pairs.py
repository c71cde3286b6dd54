"""Pairs as parquet: python scripts/export_pairs.py --data_root DIR --output FILE.parquet (see --help)."""
import sys
from pathlib import Path

# The checkout beside this script wins over any installed copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'projects' / 'checkout'))

from sa2va_dpo.commands.export_pairs import main  # noqa: E402
from sa2va_dpo.common.errors import cli_main  # noqa: E402

if __name__ == '__main__':
    cli_main(main)()
