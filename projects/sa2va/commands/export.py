"""``tools/export_hf.py``: a trained run as a directory in the layout its start checkpoint came in."""
from __future__ import annotations

import argparse
from pathlib import Path

from sa2va_dpo.common.arguments import ArgumentParser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description='Write a trained model in the released Hugging Face layout.')
    parser.add_argument('config', help='the config of the run (its saved config.py)')
    parser.add_argument('checkpoint', help='iter_N.pth or best_*.pth, a file or a DeepSpeed directory')
    parser.add_argument('output', help='directory to write; must not exist')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--merge', action='store_true', help='fold LoRA into the weights (the default)')
    form.add_argument('--adapter', action='store_true',
                      help='write only what was trained, as an adapter to put on the start checkpoint')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    return parser.parse_args(argv)


def export_run(cfg, checkpoint: str | Path, output: str | Path, adapter: bool = False) -> None:
    """Load the trained tensors, merge the adapters and write ``output``.

    Args:
        cfg: the run's config; ``cfg.model.checkpoint`` is the start, whose files, shards and dtype are kept.
        checkpoint: see :func:`sa2va_dpo.models.checkpoint.run.read_trained_tensors`.
        output: a directory that does not exist yet.
        adapter: write only the trained tensors, unmerged, instead of a whole checkpoint.

    Raises:
        InputError: ``output`` exists, or the checkpoint does not fit the config.
    """
    from mmengine.registry import MODELS

    from sa2va_dpo import plugins  # noqa: F401
    from sa2va_dpo.common.errors import InputError
    from sa2va_dpo.models.checkpoint.released import export_adapter, export_checkpoint
    from sa2va_dpo.models.trainable import merge_adapters
    from sa2va_dpo.models.checkpoint.run import load_trained_tensors

    if Path(output).exists():
        raise InputError(f'{output}: exists already: choose another directory or remove it')
    # Neither the loss nor the reference is needed: one copy of the weights in memory is enough.
    model = MODELS.build(dict(type='Sa2VASegModel', checkpoint=cfg.model.checkpoint, trainable=cfg.model.trainable))
    load_trained_tensors(model, checkpoint)
    if adapter:
        export_adapter(model.policy, output)
        return
    merge_adapters(model.policy)
    export_checkpoint(model.policy, cfg.model.checkpoint, output)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    from .train import read_config

    cfg = read_config(args.config, args.cfg_options)
    export_run(cfg, args.checkpoint, args.output, adapter=args.adapter)
    form = 'an adapter for' if args.adapter else 'adapters merged, in the layout of'
    print(f'{args.output}: {form} {cfg.model.checkpoint}')
    return 0
