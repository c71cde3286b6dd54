"""``scripts/coco_to_masks.py``: one ground-truth PNG per image of a COCO instance file."""
from __future__ import annotations

import argparse

from sa2va_dpo.common.arguments import ArgumentParser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description='Write one ground-truth PNG per image of a COCO instance file.')
    parser.add_argument('--coco', required=True, help='COCO JSON')
    parser.add_argument('--output_dir', required=True, help='folder of masks, for --gt_dir')
    parser.add_argument('--categories', nargs='+', help='names to keep (default: all)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the masks; prints how many.

    Raises:
        InputError: see :func:`sa2va_dpo.datasets.coco.coco_to_masks`.
    """
    args = parse_args(argv)
    from sa2va_dpo.datasets.coco import coco_to_masks

    written = coco_to_masks(args.coco, args.output_dir, tuple(args.categories) if args.categories else None)
    print(f'{len(written)} masks in {args.output_dir}')
    return 0
