"""``sa2va-dpo view``: what a checkpoint states about how closely its policy looks, and another statement
(docs/resolution.md)."""
from __future__ import annotations

import argparse
from pathlib import Path

from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.errors import InputError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description='Say, or with --grid set, in how many tiles a checkpoint looks at an image (docs/resolution.md). '
                    'It is one small file beside the weights, sa2va_dpo.json, which upstream\'s code does not read.')
    parser.add_argument('checkpoint', type=Path, help='directory of a checkpoint or an adapter')
    parser.add_argument('--grid', help='tiles along each axis: a number, 1 for the whole image, or auto for as many as '
                                       'the image has times SAM2\'s input')
    parser.add_argument('--overlap', type=float, help='of neighbours, as a share of a tile (default 0.25)')
    parser.add_argument('--blend', help='hann (the default) or mean')
    parser.add_argument('--context', help='what the language model looks at: image (the default) or tile')
    parser.add_argument('--whole_share', type=float,
                        help='share of the training draws that show the whole image (default 0.25)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the view, after writing it where ``--grid`` is given.

    Raises:
        InputError: no such checkpoint, an impossible value, or a flag without ``--grid``.
    """
    args = parse_args(argv)
    from sa2va_dpo.models.checkpoint import read_view, write_view

    if not args.checkpoint.is_dir():
        raise InputError(f'{args.checkpoint}: no such checkpoint directory')
    asked = {name: value for name, value in vars(args).items() if name != 'checkpoint' and value is not None}
    if asked:
        if args.grid is None:
            raise InputError(f'--{next(iter(asked))}: says nothing without --grid: add it')
        asked['grid'] = int(args.grid) if args.grid.isdecimal() else args.grid
        write_view(args.checkpoint, asked)
    view = read_view(args.checkpoint)
    print(f'{args.checkpoint}: ' + ', '.join(f'{name} {value}' for name, value in view.to_dict().items()))
    return 0
