"""Write the randomly initialised tiny Sa2VA that projects/sa2va/configs/sa2va_sft_tiny.py trains (see docs/tiny_checkpoint.md).

    python tools/make_tiny_checkpoint.py work_dirs/tiny_init --seed 0
"""
import argparse
import sys
from pathlib import Path

# The checkout beside this script wins over any installed copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'projects' / 'checkout'))

from sa2va_dpo.common.errors import cli_main  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('output', type=Path, help='directory to write')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    from sa2va_dpo.models.tiny import write_tiny_checkpoint

    print(f'{args.output}: {write_tiny_checkpoint(args.output, args.seed):,} parameters')
    return 0


if __name__ == '__main__':
    cli_main(main)()
