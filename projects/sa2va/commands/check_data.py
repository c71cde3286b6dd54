"""``sa2va-dpo check-data``: what a folder of images and masks holds, before anything is made of it."""
from __future__ import annotations

import argparse
from pathlib import Path

from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.errors import INPUT


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description='Say which images fit which masks, and what about them is suspicious.')
    parser.add_argument('directory', help='folder of images, or one that holds folders of images and masks')
    parser.add_argument('--gt_dir', help='folder of masks, or JSON of outlines (default: found by names)')
    parser.add_argument(
        '--sheet', default='check_data.png', help='contact sheet to write (default: check_data.png here)'
    )
    parser.add_argument('--no_sheet', action='store_true', help='write no contact sheet')
    parser.add_argument('--group_regex', help='first group of this expression on the file stem is the patient')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the findings and write the contact sheet.

    Returns:
        0, or 2 where pairs cannot be made of the data as they are.

    Raises:
        InputError: no such folder, or nothing in it fits.
    """
    args = parse_args(argv)
    from sa2va_dpo.datasets.contact_sheet import write_contact_sheet
    from sa2va_dpo.datasets.inventory import DataSet, describe, find_data_sets, inspect

    root = Path(args.directory)
    data_sets = [DataSet(root, Path(args.gt_dir))] if args.gt_dir else find_data_sets(root)
    for data in data_sets:
        inspect(data, progress=True)
        print('\n'.join(describe(data, args.group_regex)), flush=True)
    if not args.no_sheet:
        write_contact_sheet(args.sheet, [item for data in data_sets for item in data.matched],
                            set().union(*(data.suspicious for data in data_sets)))
        print(f'contact sheet: {args.sheet} (images, and the same with their masks in orange, fields of view in blue)')
    return INPUT if any(data.errors or not data.matched for data in data_sets) else 0
