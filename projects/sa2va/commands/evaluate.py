"""What ``tools/test.py`` does once its arguments are read: predict, score, report."""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Sequence

from mmengine.registry import DATASETS

from sa2va_dpo import plugins  # noqa: F401  (a config without custom_imports works as well)
from sa2va_dpo.common import console
from sa2va_dpo.common.errors import InputError, setting
from sa2va_dpo.common.processes import device_name, pick_device
from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT
from sa2va_dpo.engine.config import read_config, test_source
from sa2va_dpo.evaluation.report import METRICS_FILE, format_summary
from sa2va_dpo.inference.scoring import evaluate_model
from sa2va_dpo.models.checkpoint import load_trained_tensors
from sa2va_dpo.models.run_model import inference_model
from sa2va_dpo.reporting import tested


def run(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Test a checkpoint as ``commands/test.py`` was told; returns the exit code.

    Args:
        words: the arguments as they were typed, for the report.

    Raises:
        InputError: a setting, a checkpoint or a folder that cannot be used.
    """
    if bool(args.images) != bool(args.gt):
        raise InputError('--images and --gt: give both, or neither for the data set of the config')
    cfg = read_config(args.config, args.cfg_options)
    if args.before is not None:
        tested.check_before(Path(args.before))
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
    val_source = ((cfg.get('val_dataloader') or {}).get('dataset') or {}).get('source')
    tested.write_record(
        work_dir,
        cfg,
        config=args.config,
        checkpoint=args.checkpoint,
        source=dataset_cfg['source'],
        options=args.cfg_options,
        command=['python', 'tools/test.py', *words],
        before=args.before,
        seed=args.seed,
        chose=not args.images and dataset_cfg['source'] == val_source,
    )
    console.say(format_summary(json.loads((work_dir / METRICS_FILE).read_text(encoding='utf-8'))))
    console.say(f'report: {tested.write_page(work_dir, args.lang)}')
    if args.checkpoint:
        console.next_step(f'python tools/export_hf.py {args.config} {args.checkpoint} OUTPUT')
    return 0
