"""``tools/test.py``: held-out masks of a trained (or untouched) model, scored one by one."""
from __future__ import annotations

import argparse
import sys

from sa2va_dpo.common import console
from sa2va_dpo.common.arguments import ArgumentParser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description='Score the masks of a checkpoint on images with ground truth.')
    parser.add_argument('config', help='the config of the run (its saved config.py is the safest choice)')
    parser.add_argument('checkpoint', nargs='?',
                        help='iter_N.pth, a file or a DeepSpeed directory; without it the start checkpoint is scored')
    parser.add_argument('--work-dir', default='work_dirs/dpo_vessel_eval', help='where the results go')
    parser.add_argument('--images', help='folder of test images, in place of the data set of the config')
    parser.add_argument('--gt', help='folder of their ground-truth masks')
    parser.add_argument('--prompt', help='prompt for --images')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: cuda where there is one)')
    parser.add_argument('--seed', type=int, default=0, help='of the bootstrap')
    parser.add_argument('--no-overlays', action='store_true', help='write no overlay pictures')
    parser.add_argument('--before', metavar='DIR',
                        help='--work-dir of an earlier test of the same images, to be held against in report.html')
    parser.add_argument('--lang', choices=('en', 'zh'), default='en', help='of report.html (default %(default)s)')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    console.add_verbose(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    args = parse_args(words)
    console.begin(args.verbose)
    # Only now, so that --help and a mistyped flag answer at once.
    from .evaluate import run

    return run(args, words)
