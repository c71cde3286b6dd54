"""``tools/train.py``: a config in, checkpoints and logs out."""
from __future__ import annotations

import argparse
from pathlib import Path

from sa2va_dpo.common import console
from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.errors import WAITING, InputError
from sa2va_dpo.common.ownership import releases


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description='Train Sa2VA with a config of this repository.')
    parser.add_argument('config', help='MMEngine config, such as projects/sa2va/configs/sa2va_dpo_vessel.py')
    parser.add_argument('--work-dir', help='where checkpoints and logs go (default: work_dirs/<config name>)')
    parser.add_argument('--checkpoint', metavar='DIR', help='start checkpoint, in place of the one in the config')
    parser.add_argument('--data-root', metavar='DIR', help='output of the pair generator, likewise')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='go on from CHECKPOINT, or from the last one in the work directory')
    parser.add_argument('--overwrite', action='store_true', help='remove what another run left in the work directory')
    parser.add_argument('--seed', type=int, help='overrides the seed of the config')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
                        help='override settings, e.g. beta=0.2 lr=1e-6 max_epochs=1')
    parser.add_argument('--launcher', choices=['none', 'pytorch'], default='none',
                        help='"pytorch" under torchrun')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    console.add_verbose(parser)
    return parser.parse_args(argv)


@releases
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    console.begin(args.verbose)
    # After parsing, so that --help and a mistyped flag answer at once.
    from sa2va_dpo.engine.config import read_config

    cfg = read_config(
        args.config, args.cfg_options, checkpoint=args.checkpoint, data_root=args.data_root, seed=args.seed
    )
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if args.resume not in (None, 'auto') and not Path(args.resume).exists():
        raise InputError(
            f'--resume {args.resume}: no such checkpoint: give an iter_N.pth, or --resume alone for the last one'
        )
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume

    from sa2va_dpo import plugins  # noqa: F401  (a config without custom_imports works as well)
    from sa2va_dpo.engine.rounds import PicksWanted
    from sa2va_dpo.engine.runner import Sa2VARunner

    runner = Sa2VARunner.from_cfg(cfg, overwrite=args.overwrite)
    try:
        runner.train()
    except PicksWanted as wanted:
        console.say(
            f'waiting for people: {wanted}. Pick with: python scripts/review_pairs.py --pick --data_root '
            f'{wanted.root} --reviewer NAME; then repeat this command with --resume'
        )
        return WAITING
    work_dir = Path(runner.work_dir)
    written = sorted(work_dir.glob('best_*.pth')) or [work_dir / f'iter_{runner.iter}.pth']
    console.next_step(f'python tools/test.py {args.config} {written[-1]}', f'tensorboard --logdir {work_dir}')
    return 0


if __name__ == '__main__':
    from sa2va_dpo.common.errors import cli_main

    cli_main(main)()
