"""``tools/test.py``: held-out masks of a trained (or untouched) model, scored one by one."""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from sa2va_dpo.common import console
from sa2va_dpo.common.arguments import ArgumentParser
from sa2va_dpo.common.errors import InputError, setting
from sa2va_dpo.common.processes import device_name, pick_device


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
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    console.add_verbose(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    console.begin(args.verbose)
    from sa2va_dpo.engine.config import read_config, test_source

    if bool(args.images) != bool(args.gt):
        raise InputError('--images and --gt: give both, or neither for the data set of the config')
    cfg = read_config(args.config, args.cfg_options)
    from mmengine.registry import DATASETS

    from sa2va_dpo import plugins  # noqa: F401  (a config without custom_imports works as well)
    from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT
    from sa2va_dpo.evaluation.report import format_summary
    from sa2va_dpo.inference.scoring import evaluate_model
    from sa2va_dpo.models.checkpoint import load_trained_tensors
    from sa2va_dpo.models.run_model import inference_model

    if args.images:
        dataset_cfg = dict(cfg.test_dataloader.dataset, source=dict(
            type='FolderMasks', images_dir=args.images, gt_dir=args.gt, prompt=args.prompt or DEFAULT_PROMPT))
    else:
        dataset_cfg, line = test_source(cfg)
        console.say(line)
    with setting('test_dataloader.dataset'):
        dataset = DATASETS.build(dataset_cfg)
    device = pick_device(args.device)
    with setting('model'):
        model = inference_model(cfg.model, device)
    if args.checkpoint:
        count = load_trained_tensors(model, args.checkpoint)
        console.say(f'{args.checkpoint}: {count} trained tensors on {cfg.model.checkpoint}')
    else:
        console.say(f'no checkpoint given: scoring the start, {cfg.model.checkpoint}')
    work_dir = Path(args.work_dir)
    console.log_to(work_dir / 'test.log')
    console.say(f'{len(dataset)} images on {device_name(device)}; results and log in {work_dir}')
    evaluate_model(model, dataset, work_dir, device=device, seed=args.seed, overlays=not args.no_overlays)
    console.say(format_summary(json.loads((work_dir / 'metrics.json').read_text(encoding='utf-8'))))
    if args.checkpoint:
        console.next_step(f'python tools/export_hf.py {args.config} {args.checkpoint} OUTPUT')
    return 0
