"""Copy a checkpoint with SAM2 looking at another number of pixels (see docs/resolution.md).

    python tools/set_sam_size.py work_dirs/stage1_hf work_dirs/tiny_stage1 --size 640
"""
import argparse
import sys
from pathlib import Path

# The checkout beside this script wins over any installed copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'projects' / 'checkout'))

from sa2va_dpo.common.errors import cli_main  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path, help='directory with a sam2_dims.json')
    parser.add_argument('output', type=Path, help='directory to write')
    parser.add_argument('--size', type=int, required=True, help='side of the square SAM2 input, pixels; a multiple of 64')
    args = parser.parse_args()
    from sa2va_dpo.common.errors import InputError
    from sa2va_dpo.models.checkpoint import copy_with_sam_size

    if not args.checkpoint.is_dir():
        raise InputError(f'{args.checkpoint}: no such checkpoint directory')
    print(copy_with_sam_size(args.checkpoint, args.output, args.size))
    return 0


if __name__ == '__main__':
    cli_main(main)()
