"""``sa2va-dpo random-checkpoint``: a released size with random weights, to try a machine before the download."""
from __future__ import annotations

import argparse
from pathlib import Path

from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.processes import pick_device


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description='Write a checkpoint of a released size with random weights, in bfloat16: every '
                                        'command takes the time and the memory that it takes with the real one.')
    parser.add_argument('size', help='1B, 4B, 8B, 26B, InternVL3-8B, Qwen3-VL-4B, ...: a released Sa2VA')
    parser.add_argument('output', type=Path, help='directory to write, new or empty (8B takes 17 GB)')
    parser.add_argument('--tokenizer', type=Path, metavar='DIR',
                        help='checkpoint whose tokenizer is copied (default: a small one with the special tokens)')
    parser.add_argument('--seed', type=int, default=0, help='of the weights (default %(default)s)')
    parser.add_argument('--device', help='where random numbers are drawn (default: a GPU where there is one)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the checkpoint; prints its name and its number of parameters."""
    args = parse_args(argv)
    from sa2va_dpo.models.random_checkpoint import write_random_checkpoint

    name, parameters = write_random_checkpoint(args.size, args.output, args.tokenizer, args.seed,
                                               device=pick_device(args.device))
    print(f'{args.output}: {name} with random weights, {parameters:,} parameters')
    return 0
