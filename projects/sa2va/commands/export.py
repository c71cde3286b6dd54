"""``tools/export_hf.py``: a trained run, or an adapter, as a directory in the layout its start checkpoint came in."""
from __future__ import annotations

import argparse
from pathlib import Path

from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.errors import InputError, setting
from sa2va_dpo.common.files import copy_file

ADAPTER_CARD = 'ADAPTER_MODEL_CARD.md'  # what an adapter says about itself, beside what it was merged into


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        description='Write a trained model in the released Hugging Face layout.',
        usage='%(prog)s CONFIG CHECKPOINT OUTPUT [--merge | --adapter] [--test DIR] [--cfg-options KEY=VALUE ...]\n'
              '       %(prog)s ADAPTER OUTPUT [--merge] [--base DIR]')
    parser.add_argument('config', help='the config of the run (its saved config.py), or the directory of an adapter')
    parser.add_argument('checkpoint',
                        help='iter_N.pth or best_*.pth, a file or a DeepSpeed directory; none for an adapter')
    parser.add_argument('output', nargs='?', help='directory to write; must not exist')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--merge', action='store_true', help='fold LoRA into the weights (the default)')
    form.add_argument('--adapter', action='store_true',
                      help='write only what was trained, as an adapter to put on the start checkpoint')
    parser.add_argument('--base', metavar='DIR',
                        help='the checkpoint of an adapter, where it is not at the recorded path')
    parser.add_argument('--test', metavar='DIR',
                        help='--work-dir of a test of this checkpoint (tools/test.py), for figures in MODEL_CARD.md')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    return parser.parse_args(argv)


def _refuse_existing(output: str | Path) -> None:
    if Path(output).exists():
        raise InputError(f'{output}: exists already: choose another directory or remove it')


def export_run(cfg, checkpoint: str | Path, output: str | Path, adapter: bool = False,
               test: str | Path | None = None) -> None:
    """Write the trained tensors, merged or as an adapter, with a model card; nothing else is read into memory as a
    whole.

    Args:
        cfg: the run's config; ``cfg.model.checkpoint`` is the start, whose files, shards and dtype are kept.
        checkpoint: see :func:`sa2va_dpo.models.checkpoint.read_trained_tensors`.
        output: a directory that does not exist yet.
        adapter: write only the trained tensors, unmerged, instead of a whole checkpoint.
        test: folder of a test of this checkpoint, for the figures of the card.

    Raises:
        InputError: ``output`` exists, the checkpoint does not fit the config, or the test is of another one.
    """
    from sa2va_dpo.models.checkpoint import export_adapter, export_checkpoint, load_trained_tensors, read_view
    from sa2va_dpo.models.run_model import Sa2VARunModel
    from sa2va_dpo.reporting.model_card import read_tested, run_card

    _refuse_existing(output)
    tested = None if test is None else read_tested(Path(test), Path(checkpoint))
    # Neither the loss nor the reference is needed, nor any weight that was not trained.
    with setting('model'):
        model = Sa2VARunModel(cfg.model.checkpoint, cfg.model.trainable, device='meta')
    load_trained_tensors(model, checkpoint)
    # What the run trained and validated with belongs to its result.
    view = (cfg.get('train_dataloader') or {}).get('dataset', {}).get('view')
    card = run_card(cfg, checkpoint, Path(output).name, adapter=adapter, tested=tested)
    if adapter:
        export_adapter(model.policy, output, view, card)
    else:
        export_checkpoint(model.policy, cfg.model.checkpoint, output,
                          read_view(cfg.model.checkpoint) if view is None else view, card)


def merge_adapter(adapter: str | Path, output: str | Path, base: str | Path | None = None) -> Path:
    """Write a whole checkpoint from an adapter; returns the checkpoint that it was put on.

    Args:
        adapter: directory that ``--adapter`` wrote.
        output: a directory that does not exist yet.
        base: its checkpoint, where that is not at the recorded path.

    Raises:
        InputError: ``output`` exists, or the adapter's checkpoint is missing or another one.
    """
    from sa2va_dpo.models.checkpoint import CARD_FILE, base_directory, export_checkpoint, load_checkpoint, read_view
    from sa2va_dpo.reporting.model_card import untrained_card

    _refuse_existing(output)
    found = base_directory(adapter, base)
    view, own = read_view(adapter, base), Path(adapter) / CARD_FILE
    beside = (f'What it was trained with is in `{ADAPTER_CARD}`.' if own.is_file() else
              'The adapter came without a card.')
    card = untrained_card(found, Path(output).name, base=found, view=view, why=(
        f'The adapter `{Path(adapter).resolve().name}` merged into its base. {beside}'))
    export_checkpoint(load_checkpoint(adapter, device='meta', base=base), found, output, view, card)
    if own.is_file():
        copy_file(own, Path(output) / ADAPTER_CARD)
    return found


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    if args.output is None:
        from sa2va_dpo.models.checkpoint import is_adapter

        if not is_adapter(args.config):
            raise InputError(f'{args.config}: is no adapter directory; give CONFIG CHECKPOINT OUTPUT, or ADAPTER '
                             f'OUTPUT')
        if args.adapter or args.cfg_options or args.test:
            raise InputError(f'{args.config}: is an adapter already; it can only be merged, without --adapter, '
                             f'--cfg-options and --test')
        found = merge_adapter(args.config, args.checkpoint, args.base)
        print(f'{args.checkpoint}: adapter merged, in the layout of {found}')
        return 0
    if args.base is not None:
        raise InputError('--base: belongs to the form ADAPTER OUTPUT; the config of a run names its checkpoint')
    from sa2va_dpo.engine.config import read_config

    cfg = read_config(args.config, args.cfg_options)
    export_run(cfg, args.checkpoint, args.output, adapter=args.adapter, test=args.test)
    form = 'an adapter for' if args.adapter else 'adapters merged, in the layout of'
    print(f'{args.output}: {form} {cfg.model.checkpoint}')
    return 0
