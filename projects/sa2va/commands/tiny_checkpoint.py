"""``tools/make_tiny_checkpoint.py``: the untrained tiny Sa2VA that ``configs/sa2va_sft_tiny.py`` trains."""
from __future__ import annotations

import argparse
from pathlib import Path

from sa2va_dpo.common.arguments import ArgumentParser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description='Write a randomly initialised tiny Sa2VA (docs/tiny_checkpoint.md).')
    parser.add_argument('output', type=Path, help='directory to write')
    parser.add_argument('--seed', type=int, default=0, help='of the weights (default %(default)s)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the checkpoint; prints its number of parameters."""
    args = parse_args(argv)
    from sa2va_dpo.models.tiny import write_tiny_checkpoint

    print(f'{args.output}: {write_tiny_checkpoint(args.output, args.seed):,} parameters')
    return 0
