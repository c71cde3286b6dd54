"""``sa2va-dpo check-data``: what a folder of images and masks holds, before anything is made of it."""
from __future__ import annotations

import argparse
from pathlib import Path

from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.errors import INPUT
from sa2va_dpo.datasets.names import printable


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
    from sa2va_dpo.datasets.contact_sheet import contact_sheet
    from sa2va_dpo.datasets.inventory import DataSet, find_data_sets, inspect
    from sa2va_dpo.datasets.mask_io import write_rgb

    root = Path(args.directory)
    data_sets = [DataSet(root, Path(args.gt_dir))] if args.gt_dir else find_data_sets(root)
    for data in data_sets:
        inspect(data, progress=True)
        print('\n'.join(describe(data, args.group_regex)), flush=True)
    if not args.no_sheet:
        write_rgb(args.sheet, contact_sheet([item for data in data_sets for item in data.matched],
                                            set().union(*(data.suspicious for data in data_sets))))
        print(f'contact sheet: {args.sheet} (images, and the same with their masks in orange, fields of view in blue)')
    return INPUT if any(data.errors or not data.matched for data in data_sets) else 0


def describe(data, group_regex: str | None = None, most: int = 5) -> list[str]:
    """A data set's findings (``datasets/inventory.py``) as lines of text; of each kind the first ``most``.

    Raises:
        InputError: ``group_regex`` does not match a stem.
    """
    import numpy as np

    from sa2va_dpo.datasets.ground_truth import patient_of

    def some(names: list[str]) -> str:
        return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')

    images = len(data.matched) + len(data.without_mask)
    patients = {patient_of(image.stem, group_regex) for image, _, _ in data.matched}
    fields = sum(field is not None for _, _, field in data.matched)
    lines = [
        f'{printable(data.images)}: {len(data.matched)} of {images} images have a mask in {printable(data.masks)}, '
        f'{len(patients)} patients, {fields} fields of view'
    ]
    lines += [
        f'  {printable(image.name)} -> {printable(mask.name)}'
        + (f', field of view {printable(field.name)}' if field else '')
        for image, mask, field in data.matched[:3]
    ]
    if len(data.matched) > 3:
        lines.append('  ...')
    for names, label in (([printable(path.name) for path in data.without_mask], 'images without a mask'),
                         ([printable(path.name) for path in data.without_image], 'masks without an image')):
        if names:
            lines.append(f'  {label} ({len(names)}): {some(names)}')
    lines.append(
        '  sizes: ' + some([f'{width} x {height} px ({count})' for (width, height), count in data.sizes.most_common()])
    )
    lines.append('  mask levels: ' + some([f'{levels} ({count})' for levels, count in data.levels.most_common()]))
    if data.shares:
        low, middle, high = np.quantile(data.shares, (0, 0.5, 1))
        lines.append(f'  vessel: {low:.1%} to {high:.1%} of the image, median {middle:.1%}')
    for findings, label in ((data.errors, 'error'), (data.warnings, 'look')):
        lines += [f'  {label}: {finding}' for finding in findings[:most]]
        if len(findings) > most:
            lines.append(f'  {label}: {len(findings) - most} more of these')
    if not data.errors and not data.warnings:
        lines.append('  nothing suspicious')
    return lines
