"""``scripts/export_pairs.py``: preference pairs as one parquet file that Hugging Face ``datasets`` and TRL read."""
from __future__ import annotations

import argparse

from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.datasets.annotations import PAIRS_FILE


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description='Write preference pairs as one parquet file (TRL, datasets).')
    parser.add_argument('--data_root', required=True, help='output folder of generate_dpo_dataset.py')
    parser.add_argument('--ann_file', default=PAIRS_FILE, help='pairs in that folder (default %(default)s)')
    parser.add_argument('--output', required=True, help='file to write, *.parquet')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the file; prints the number of pairs.

    Raises:
        InputError: see :func:`sa2va_dpo.preferences.export.export_parquet`.
    """
    args = parse_args(argv)
    from sa2va_dpo.preferences.export import export_parquet

    print(f'{export_parquet(args.data_root, args.output, args.ann_file)} pairs in {args.output}')
    return 0
