"""``tools/convert_pth.py``: upstream's trainer checkpoint to the released layout."""
from __future__ import annotations

import argparse

from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.files import write_json


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description='Upstream trainer checkpoint over a base directory -> released layout.')
    parser.add_argument('pth', help='iter_N.pth, a file or a DeepSpeed directory')
    parser.add_argument('base', help='released-layout directory that the run was started from')
    parser.add_argument('output', help='directory to write; new or empty')
    parser.add_argument('--lora-alpha', type=float, help='default: what the stored config says')
    parser.add_argument('--rslora', action='store_true', help='the run used rank-stabilised LoRA')
    parser.add_argument('--report', metavar='FILE', help='JSON: where every tensor came from')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Convert; prints where every tensor came from.

    Raises:
        InputError: see :func:`sa2va_dpo.models.checkpoint.upstream_pth.convert`.
    """
    args = parse_args(argv)
    from sa2va_dpo.models.checkpoint.upstream_pth import convert

    report = convert(args.pth, args.base, args.output, args.lora_alpha, args.rslora)
    if args.report:
        write_json(args.report, report)
    for name, text in report['tensors'].items():
        if text != 'base':
            print(f'{name}: {text}')
    for key in report['superseded']:
        print(f'superseded, not used: {key}')
    print(f'{args.output}: ' + ', '.join(f'{n} {kind}' for kind, n in sorted(report['counts'].items())))
    return 0
