"""What preference training does to held-out masks: a table of recipes x data x seeds, with intervals.

    python benchmarks/preference_study.py --out work_dirs/study --data demo hrf chase --seeds 0 1 2 3 4

Half of the patients are trained on, the other half is the test; the figures are those of the last step, nothing is
selected. The language model is frozen; photographs above 1,200 px are reduced to that (docs/method.md). Resumable:
every finished run is one JSON file in OUT/runs and is never repeated. Several processes may share one OUT:
``--prepare`` once, then ``--shard 0/8`` ... ``--shard 7/8``, then ``--report`` writes results.csv, results.md and
results.png.
"""
from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.study import runs  # noqa: E402


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/study')
    parser.add_argument('--data', nargs='+', default=['demo', 'hrf', 'chase'], choices=['demo', 'hrf', 'chase'])
    parser.add_argument(
        '--bases',
        nargs='+',
        default=['tiny', 'thick'],
        help='tiny, thick, or tiny@N for the bundled checkpoint at N px; masks are then scored at N / 2',
    )
    parser.add_argument('--groups', nargs='+', default=['main'], choices=['main', 'bounded', 'attempts', 'rates'])
    parser.add_argument('--cells', nargs='+', help='only recipes whose name contains one of these')
    runs.add_flags(parser)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.report:
        from benchmarks.study.report import report

        return report(args.out)
    from benchmarks.study.bases import base_checkpoint
    from benchmarks.study.run import run_cell
    from benchmarks.study.splits import Split, prepare_images
    from benchmarks.study.table import Cell, cells
    from sa2va_dpo.common.processes import pick_device

    device = pick_device(args.device)
    if args.prepare:
        for base in args.bases:
            base_checkpoint(base, args.out, device)
        for data in args.data:
            for seed in args.seeds if data == 'demo' else [0]:
                prepare_images(data, seed, args.out, args.shared)
        return None
    table = [cell for cell in cells() if cell.group in args.groups]
    if args.cells:
        for word in args.cells:
            if not any(word in cell.name for cell in table):
                sys.exit(f"--cells {word}: no recipe of these groups has that in its name (own is called self now)")
        table = [cell for cell in table if any(word in cell.name for word in args.cells)]
    table = [Cell('start', 'self', dict(type='guide'), steps=0), *table]
    index, count = map(int, args.shard.split('/'))
    splits = [(seed, data, base) for seed in args.seeds for base in args.bases for data in args.data]
    for seed, data, base in splits[index::count]:
        split = None
        for cell in table:
            if cell.steps:
                cell = replace(cell, steps=args.steps or cell.steps, lr=args.lr or cell.lr)
            if '@' in base:
                cell = replace(cell, score_size=int(base.split('@')[1]) // 2)
            path = runs.path_of(args.out, base, data, seed, cell.name)
            if path.exists() or runs.is_late(args):
                continue
            if split is None:
                split = Split(
                    base_checkpoint(base, args.out, device),
                    *prepare_images(data, seed, args.out, args.shared),
                    seed=seed,
                    pairs_root=args.out / 'pairs' / f'{base}_{data}_{seed}',
                    device=device,
                )
            started = time.time()
            result = dict(base=base, data=data, cell=cell.name, seed=seed, steps=cell.steps, lr=cell.lr,
                          **run_cell(cell, split), seconds=round(time.time() - started, 1))
            runs.write(path, result)
    if count == 1:
        from benchmarks.study.report import report

        report(args.out)


if __name__ == '__main__':
    main()
