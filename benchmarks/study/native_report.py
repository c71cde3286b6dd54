"""results.csv and results.md (mean and 95 % t interval over seeds) of the finished runs of ``native_resolution.py``."""
from __future__ import annotations

from pathlib import Path

import numpy as np

from .native import ARMS, refined_arms
from .report import interval
from .runs import read_all, write_csv

FIELDS = ['data', 'arm', 'seed', 'grid', 'context', 'size', 'steps', 'train', 'test', 'dice', 'cldice', 'flips_dice',
          'flips_cldice', 'peak_gib', 'seconds']
BASELINES = ('whole, 640 px', 'whole, 1024 px')


def report(out: Path) -> None:
    """Every arm beside the whole image at either input size, on the seeds that both have, and the U-Net's row."""
    rows = read_all(out)
    if not rows:
        return
    write_csv(out, FIELDS, sorted(rows, key=lambda row: (row['data'], row['arm'], row['seed'])))
    value = {(row['data'], row['arm'], row['seed']): row for row in rows}
    order = [arm.name for arm in (*ARMS, *refined_arms())]
    order.insert(len([arm for arm in ARMS if not arm.probe and arm.steps]), 'U-Net')
    lines = []
    for data in sorted({row['data'] for row in rows}):
        one = next(row for row in rows if row['data'] == data)
        lines += [f'\n### {data}: {one["train"]} training, {one["test"]} test images\n',
                  '| | seeds | Dice | clDice | against whole, 640 px: Dice | clDice | against whole, 1024 px: Dice | '
                  'clDice | mirrored: Dice | clDice |', '|---|---|---|---|---|---|---|---|---|---|']
        for name in order:
            seeds = sorted(s for d, a, s in value if (d, a) == (data, name))
            if seeds:
                lines.append('| ' + ' | '.join([name, ' '.join(map(str, seeds)), *_cells(value, data, name, seeds)])
                             + ' |')
    (out / 'results.md').write_text('\n'.join(lines) + '\n')
    print('\n'.join(lines))


def _cells(value: dict, data: str, name: str, seeds: list[int]) -> list[str]:
    runs = {seed: value[data, name, seed] for seed in seeds}
    prefix = next((part for part in ('start, ', 'probe: ') if name.startswith(part)), '')
    cells = [f'{np.mean([run[metric] for run in runs.values()]):.4f}' for metric in ('dice', 'cldice')]
    for baseline in BASELINES:
        common = [seed for seed in seeds if (data, prefix + baseline, seed) in value and name != prefix + baseline]
        cells += [interval([runs[seed][metric] - value[data, prefix + baseline, seed][metric] for seed in common])
                  + ('' if len(common) == len(seeds) else f' ({len(common)} seeds)') if common else ''
                  for metric in ('dice', 'cldice')]
    flips = all('flips_dice' in run for run in runs.values())
    return cells + [f'{np.mean([run[metric] for run in runs.values()]):.4f}' if flips else ''
                    for metric in ('flips_dice', 'flips_cldice')]
