"""``tools/set_sam_size.py``: a copy of a checkpoint whose SAM2 looks at another number of pixels
(docs/resolution.md)."""
from __future__ import annotations

import argparse
from pathlib import Path

from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.errors import InputError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description='Copy a checkpoint with SAM2 looking at another number of pixels (docs/resolution.md).')
    parser.add_argument('checkpoint', type=Path, help='directory with a sam2_dims.json')
    parser.add_argument('output', type=Path, help='directory to write')
    parser.add_argument(
        '--size', type=int, required=True, help='side of the square SAM2 input, pixels; a multiple of 64'
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the copy.

    Raises:
        InputError: no such checkpoint, or its size cannot be changed to this one.
    """
    args = parse_args(argv)
    from sa2va_dpo.models.checkpoint import copy_with_sam_size

    if not args.checkpoint.is_dir():
        raise InputError(f'{args.checkpoint}: no such checkpoint directory')
    print(copy_with_sam_size(args.checkpoint, args.output, args.size))
    return 0
