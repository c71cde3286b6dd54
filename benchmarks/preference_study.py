"""What preference training does to held-out masks: a table of recipes x data x seeds, with intervals.

    python benchmarks/preference_study.py --out work_dirs/study --data demo hrf chase --seeds 0 1 2 3 4

Resumable: every finished run is one JSON file in OUT/runs and is never repeated. Several processes may share one OUT
(``--shard 0/8`` ... ``--shard 7/8``); ``--report`` alone writes results.csv, results.md and results.png from what is there.
Images used for training are half of the patients; the other half is the test. No selection takes place: the figures are
those of the last step.
"""
from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / 'projects/sa2va/assets/tiny_sa2va')
METRICS = ('dice', 'cldice', 'precision', 'recall', 'iou')

LORA = dict(llm=dict(mode='lora', r=8, alpha=16), sam2_encoder=dict(mode='lora', r=32, alpha=64), sam2_neck='full',
            projector='full', mask_decoder='full')
FULL = dict(llm=dict(mode='lora', r=8, alpha=16), sam2_encoder='full', sam2_neck='full', projector='full',
            mask_decoder='full')
PARTS = dict(lora=LORA, full=FULL)
BALANCED = dict(reduction='balanced', beta=1.0)


@dataclass(frozen=True)
class Cell:
    """One recipe. ``pairs``: ``own`` (the policy's candidates only), ``own_best`` (chosen = the best of them),
    ``gt`` (ground truth among the candidates), ``gt_only`` (chosen = ground truth). ``twin``: the anchor-only run that
    differs in the preference weight alone."""

    name: str
    pairs: str
    preference: dict = field(hash=False)
    parts: str = 'lora'
    lr: float = 3e-4
    steps: int = 120
    reference: str = 'initial'
    twin: str | None = None


def anchored(weight: float, anchor: float = 1.0, **preference) -> dict:
    return dict(weight=weight, sft_weight=anchor, sft_bce=2.0, sft_dice=0.5, **preference)


def cells() -> list[Cell]:
    """The table's rows."""
    table = [
        Cell('supervised on ground truth', 'gt_only', anchored(0.0)),
        Cell('supervised on best own candidate', 'own_best', anchored(0.0)),
        Cell('guide as written', 'own', dict(type='guide')),
        Cell('guide as written, with ground truth', 'gt', dict(type='guide')),
        Cell('guide, no reference', 'own', dict(type='guide'), reference='none'),
        Cell('own: anchor only', 'own', anchored(0.0)),
        Cell('own: balanced + anchor', 'own', anchored(0.2, **BALANCED), twin='own: anchor only'),
        Cell('own: balanced alone', 'own', dict(**BALANCED)),
        Cell('own: balanced alone, clip 3', 'own', dict(**BALANCED, clip=3.0)),
        Cell('gt: anchor only', 'gt', anchored(0.0)),
        Cell('gt: balanced + anchor', 'gt', anchored(0.2, **BALANCED), twin='gt: anchor only'),
        Cell('gt: guide + anchor', 'gt', anchored(1.0), twin='gt: anchor only'),
        Cell('gt_only: balanced + anchor', 'gt_only', anchored(0.2, **BALANCED), twin='supervised on ground truth'),
        Cell('own_best: balanced + anchor', 'own_best', anchored(0.2, **BALANCED),
             twin='supervised on best own candidate'),
    ]
    for parts, lr in (('full', 3e-4), ('full', 1e-3), ('lora', 1e-3)):
        table.append(Cell(f'supervised on ground truth, {parts} {lr:g}', 'gt_only', anchored(0.0), parts=parts, lr=lr))
        table.append(Cell(f'gt: balanced + anchor, {parts} {lr:g}', 'gt', anchored(0.2, **BALANCED), parts=parts, lr=lr))
    return table


def prepare(data: str, seed: int, out: Path, shared: Path, device: str) -> dict:
    """Folders and pair roots of one split; made once, other processes wait for them."""
    from projects.sa2va.datasets.drawn import write_dataset
    from projects.sa2va.datasets.ground_truth import patient_of, split_by_group
    from projects.sa2va.datasets.mask_io import list_images
    from projects.sa2va.preferences.config import GenerateConfig
    from projects.sa2va.preferences.generate import generate_pairs

    root = out / 'data' / f'{data}_{seed}'
    if data == 'demo':
        images, gt = root / 'images', root / 'masks'
    else:
        folder = shared / 'data' / {'hrf': 'hrf', 'chase': 'chase_db1'}[data]
        images, gt = folder / 'images', folder / 'masks'
    done, lock = root / 'ready', root / 'lock'
    root.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
        mine = True
    except FileExistsError:
        mine = False
    if mine and not done.exists():
        if data == 'demo':
            write_dataset(root, style='demo', seed=1000 + seed, n=48, size=512, workers=1)
    while not mine and not done.exists():
        time.sleep(0.5)
    train, test = split_by_group(list_images(images), 0.5, seed, key=lambda path: patient_of(path.stem))
    if mine and not done.exists():
        for include_gt in (False, True):
            generate_pairs(GenerateConfig(
                mode='generate', images_dir=str(images), gt_dir=str(gt), output_dir=str(root / ('gt' if include_gt else 'own')),
                model_path=TINY, num_samples=6, min_iou_gap=0.02, seed=seed, include_gt=include_gt, device=device), images=train)
        done.touch()
    return dict(images=str(images), gt=str(gt), root=root, test=[path.stem for path in test])


def filter_pairs(root: Path, pairs: str) -> tuple[Path, str]:
    """(data root, annotation file) that holds the pairs of a cell."""
    data_root = root / ('gt' if pairs.startswith('gt') else 'own')
    if pairs in ('gt', 'own'):
        return data_root, 'dpo_annotations.json'
    name = f'{pairs}.json'
    if not (data_root / name).exists():
        records = json.loads((data_root / 'dpo_annotations.json').read_text())
        best: dict[str, float] = {}
        for record in records:
            best[record['image']] = max(best.get(record['image'], 0), record['chosen_iou'])
        keep = [r for r in records if r['chosen_iou'] == best[r['image']]
                and (pairs != 'gt_only' or r['chosen_source'] == 'ground_truth')]
        temporary = data_root / f'{name}.{os.getpid()}'
        temporary.write_text(json.dumps(keep))
        os.replace(temporary, data_root / name)
    return data_root, name


def run_cell(cell: Cell, split: dict, seed: int, device: str) -> dict:
    """Train one recipe on one split and score the test half."""
    import torch
    from torch.utils.data import DataLoader, RandomSampler

    from projects.sa2va.datasets import dpo_vessel_dataset
    from projects.sa2va.datasets.seg_dataset import FolderMasks, VesselSegDataset
    from projects.sa2va.engine.evaluate import evaluate_model
    from projects.sa2va.models.sa2va_dpo_model import Sa2VADPOModel

    torch.manual_seed(seed)
    model = Sa2VADPOModel(TINY, PARTS[cell.parts], cell.preference, reference=cell.reference, score_size=256).to(device)
    logs: dict[str, list] = {}
    if cell.steps:
        # The few images and masks of a split are read once.
        for name in ('read_image_rgb', 'read_mask'):
            function = getattr(dpo_vessel_dataset, name)
            if not hasattr(function, 'cache_info'):
                setattr(dpo_vessel_dataset, name, lru_cache(maxsize=None)(function))
        data_root, ann_file = filter_pairs(split['root'], cell.pairs)
        dataset = dpo_vessel_dataset.DPOVesselDataset(
            str(data_root), TINY, ann_file=ann_file, score_size=256, pairs_per_image=4, flip_prob=0.5, seed=seed)
        sampler = RandomSampler(dataset, replacement=True, num_samples=4 * cell.steps,
                                generator=torch.Generator().manual_seed(seed))
        loader = DataLoader(dataset, batch_size=4, sampler=sampler,
                            collate_fn=lambda items: dpo_vessel_dataset.dpo_collate(items, TINY))
        groups = [dict(params=[p for _, p in group['params']], lr=cell.lr * group['lr_mult'])
                  for group in model.parameter_groups()]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        warmup = 10
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / warmup, max(
            0.1, 0.55 + 0.45 * __import__('math').cos(3.14159 * max(0, i - warmup) / max(1, cell.steps - warmup)))))
        model.train()
        for step, data in enumerate(loader):
            losses = model(**model.data_preprocessor(data, True), mode='loss')
            total = sum(value for key, value in losses.items() if 'loss' in key)
            optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_([p for g in groups for p in g['params']], 1.0)
            optimizer.step()
            schedule.step()
            if step >= cell.steps - 20:
                for key in ('accuracy', 'margin', 'saturation', 'drift_outside'):
                    if key in losses:
                        logs.setdefault(key, []).append(float(losses[key]))
    test = VesselSegDataset(FolderMasks(split['images'], split['gt'], stems=split['test']), TINY)
    metrics = evaluate_model(model, test, split['root'] / f'eval_{os.getpid()}', device=device, overlays=False)
    return dict(metrics, **{f'train_{key}': sum(values) / len(values) for key, values in logs.items()})


def report(out: Path) -> None:
    """results.csv, results.md (mean and 95 % t interval over seeds) and results.png."""
    import numpy as np
    from scipy import stats

    rows = [json.loads(path.read_text()) for path in sorted((out / 'runs').glob('*.json'))]
    if not rows:
        print('no finished run yet')
        return
    names = ['data', 'cell', 'seed', *METRICS, 'train_accuracy', 'train_margin', 'seconds']
    with open(out / 'results.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, names, extrasaction='ignore')
        writer.writeheader()
        writer.writerows(rows)

    def interval(values) -> str:
        values = np.asarray(values, float)
        if len(values) < 2:
            return f'{values.mean():+.4f}'
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
        return f'{values.mean():+.4f} ± {half:.4f}'

    value = {(r['data'], r['cell'], r['seed']): r for r in rows}
    twins = {cell.name: cell.twin for cell in cells()}
    lines = []
    order = ['start', *(cell.name for cell in cells())]
    for data in sorted({r['data'] for r in rows}):
        lines += [f'\n### {data}\n', '| recipe | seeds | Dice | change of Dice | change of clDice | preference term alone (Dice, over its twin) | train accuracy |',
                  '|---|---|---|---|---|---|---|']
        for name in order:
            seeds = sorted(s for d, c, s in value if d == data and c == name)
            if not seeds:
                continue
            runs = [value[data, name, s] for s in seeds]
            common = [s for s in seeds if (data, 'start', s) in value]
            change, cl = ([value[data, name, s][m] - value[data, 'start', s][m] for s in common] for m in ('dice', 'cldice'))
            twin = twins.get(name)
            paired = [value[data, name, s]['dice'] - value[data, twin, s]['dice'] for s in seeds if (data, twin, s) in value]
            accuracy = [r['train_accuracy'] for r in runs if 'train_accuracy' in r]
            lines.append('| ' + ' | '.join([
                name, str(len(seeds)), f'{np.mean([r["dice"] for r in runs]):.4f}', interval(change) if common else '',
                interval(cl) if common else '', interval(paired) if paired else '',
                f'{np.mean(accuracy):.2f}' if accuracy else '']) + ' |')
    (out / 'results.md').write_text('\n'.join(lines) + '\n')
    print('\n'.join(lines))
    plot(out, rows, order)


def plot(out: Path, rows: list[dict], order: list[str]) -> None:
    """Change of test Dice by recipe, one dot a seed, one panel a data set."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    sets = sorted({r['data'] for r in rows})
    start = {(r['data'], r['seed']): r['dice'] for r in rows if r['cell'] == 'start'}
    names = [n for n in order if n != 'start' and any(r['cell'] == n for r in rows)]
    figure, axes = plt.subplots(1, len(sets), figsize=(4 + 3 * len(sets), 1.5 + 0.3 * len(names)), sharey=True, squeeze=False)
    for axis, data in zip(axes[0], sets):
        for y, name in enumerate(names):
            x = [r['dice'] - start[data, r['seed']] for r in rows
                 if r['data'] == data and r['cell'] == name and (data, r['seed']) in start]
            axis.plot(x, [y] * len(x), 'o', alpha=0.6)
        axis.axvline(0, color='grey', lw=1)
        axis.set(title=data, xlabel='change of test Dice', yticks=range(len(names)), yticklabels=names)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(out / 'results.png', dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/study')
    parser.add_argument('--data', nargs='+', default=['demo', 'hrf', 'chase'], choices=['demo', 'hrf', 'chase'])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument('--cells', nargs='+', help='only recipes whose name contains one of these')
    parser.add_argument('--steps', type=int, help='optimiser steps of every recipe (default: as in the table)')
    parser.add_argument('--shared', type=Path, default=ROOT.parent / 'shared', help='folder that holds data/hrf, data/chase_db1')
    parser.add_argument('--device')
    parser.add_argument('--shard', default='0/1')
    parser.add_argument('--report', action='store_true', help='only write the report')
    args = parser.parse_args()
    if args.report:
        return report(args.out)
    from dataclasses import replace

    from projects.sa2va.engine.evaluate import pick_device

    device = pick_device(args.device)
    (args.out / 'runs').mkdir(parents=True, exist_ok=True)
    table = [Cell('start', 'own', dict(type='guide'), steps=0), *cells()]
    if args.cells:
        table = [cell for cell in table if cell.name == 'start' or any(word in cell.name for word in args.cells)]
    index, count = map(int, args.shard.split('/'))
    jobs = [(seed, data, cell) for seed in args.seeds for cell in table for data in args.data]
    for seed, data, cell in jobs[index::count]:
        if cell.steps and args.steps:
            cell = replace(cell, steps=args.steps)
        path = args.out / 'runs' / f'{data}-{seed}-{cell.name.replace(" ", "_").replace("/", "_")}.json'
        if path.exists():
            continue
        split = prepare(data, seed, args.out, args.shared, device)
        started = time.time()
        result = dict(data=data, cell=cell.name, seed=seed, steps=cell.steps, **run_cell(cell, split, seed, device),
                      seconds=round(time.time() - started, 1))
        temporary = path.with_suffix(f'.{os.getpid()}')
        temporary.write_text(json.dumps(result))
        os.replace(temporary, path)
        print(f'{data} seed {seed} {cell.name}: dice {result["dice"]:.4f} cldice {result["cldice"]:.4f} ({result["seconds"]} s)', flush=True)
    if count == 1:
        report(args.out)


if __name__ == '__main__':
    main()
