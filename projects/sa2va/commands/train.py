"""``tools/train.py``: a config in, checkpoints and logs out."""
from __future__ import annotations

import argparse
import os
from pathlib import Path

from sa2va_dpo.common.ownership import releases


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train Sa2VA with a config of this repository.')
    parser.add_argument('config', help='MMEngine config, such as projects/sa2va/configs/sa2va_dpo_vessel.py')
    parser.add_argument('--work-dir', help='where checkpoints and logs go (default: work_dirs/<config name>)')
    parser.add_argument('--checkpoint', metavar='DIR', help='start checkpoint, in place of the one in the config')
    parser.add_argument('--data-root', metavar='DIR', help='output of the pair generator, likewise')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='go on from CHECKPOINT, or from the last one in the work directory')
    parser.add_argument('--overwrite', action='store_true', help='remove what another run left in the work directory')
    parser.add_argument('--seed', type=int, help='overrides the seed of the config')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
                        help='override settings, e.g. model.preference.beta=0.2 train_cfg.max_epochs=1')
    parser.add_argument('--launcher', choices=['none', 'pytorch'], default='none',
                        help='"pytorch" under torchrun')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def read_config(path: str, options: list[str]):
    """The config with overrides applied; raises InputError naming the file or the option."""
    from mmengine.config import Config, DictAction

    from sa2va_dpo.common.errors import InputError

    if not Path(path).is_file():
        raise InputError(f'{path}: no such config file: the configs are in projects/sa2va/configs')
    try:
        cfg = Config.fromfile(path)
    except InputError:
        raise
    except Exception as error:  # a config is Python: whatever it raises is about this file
        raise InputError(f'{path}: cannot be read as a config: {error}') from error
    overrides = {}
    for option in options:
        key, equals, value = option.partition('=')
        if not equals:
            raise InputError(f'--cfg-options {option}: must be KEY=VALUE')
        overrides[key] = DictAction._parse_iterable(value)
    cfg.merge_from_dict(overrides)
    return cfg


def check_settings(cfg, path: str) -> None:
    """Check what can be checked without the checkpoint; raises InputError naming the config and the setting."""
    from sa2va_dpo.common.errors import InputError
    from sa2va_dpo.models.sa2va_dpo_model import preference_config
    from sa2va_dpo.models.trainable import normalise_switches

    try:
        normalise_switches(cfg.model.trainable)
        if 'preference' in cfg.model:
            preference_config(cfg.model.preference, cfg.model.get('reference', 'initial'))
    except ValueError as error:
        raise InputError(f'{path}: model.{error}') from None


@releases
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    # After parsing, so that --help and a mistyped flag answer at once.
    from sa2va_dpo.common.errors import InputError
    from sa2va_dpo.engine.paths import repoint
    from .run_record import claim_training

    cfg = read_config(args.config, args.cfg_options)
    repoint(cfg, args.checkpoint, args.data_root)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    if args.seed is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=args.seed)
    check_settings(cfg, args.config)
    if args.resume not in (None, 'auto') and not Path(args.resume).exists():
        raise InputError(f'--resume {args.resume}: no such checkpoint: give an iter_N.pth, or --resume alone for the last one')
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    for line in claim_training(cfg, args.overwrite):
        print(line, flush=True)
    if int(os.environ.get('RANK', 0)) == 0:
        # Before the machine's adaptations: this file starts the same run on any machine.
        cfg.dump(os.path.join(cfg.work_dir, 'config.py'))
    return run(cfg)


def run(cfg) -> int:
    """Fit the config to the machine, build the runner, train; returns the exit code."""
    from sa2va_dpo.caching.prepare import prepare
    from sa2va_dpo.models.checkpoint.run import weights_only_loads
    from sa2va_dpo.engine.guard import GuardedRunner
    from sa2va_dpo.engine.strategy import fit_to_machine

    lines = [fit_to_machine(cfg), *prepare(cfg)]
    runner = GuardedRunner.from_cfg(cfg)
    for line in lines:
        runner.logger.info(line)
    with weights_only_loads():
        runner.train()
    return 0


if __name__ == '__main__':
    from sa2va_dpo.common.errors import cli_main

    cli_main(main)()
