"""What images without masks are worth: k labelled images, the others judged by clicks, by consensus, or by nobody.

    python benchmarks/label_study.py --out work_dirs/labels --data arcade chase hrf --seeds 0 1 2 3 4

Half of the patients are trained on, a fifth of the other half is labelled validation (the guard looks at nothing else),
the rest is the test. Figures are those of the last step. Resumable and shareable as ``preference_study.py``: one JSON
file a finished run.
"""
from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'projects/checkout')]

from benchmarks.study import runs  # noqa: E402

LABELLED = dict(arcade=(8,), chase=(2,), hrf=(2,), demo=(4,))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs/labels')
    parser.add_argument('--data', nargs='+', default=['arcade', 'chase', 'hrf'], choices=list(LABELLED))
    parser.add_argument(
        '--labelled', nargs='+', type=int, help='k (default: 8 for arcade, 2 for chase and hrf, 4 for demo)'
    )
    parser.add_argument('--groups', nargs='+', default=['main'])
    parser.add_argument('--only', nargs='+', help='only regimes of these names, in this order')
    parser.add_argument('--base-steps', type=int)
    runs.add_flags(parser)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.report:
        from benchmarks.study.label_report import report

        return report(args.out)
    from benchmarks.study.bank import Bank
    from benchmarks.study.bases import TINY, labelled_base
    from benchmarks.study.regimes import BASE_STEPS, Regime, regimes
    from benchmarks.study.rounds import run_regime, score
    from benchmarks.study.splits import prepare_images
    from sa2va_dpo.common.processes import pick_device
    from sa2va_dpo.models.checkpoint import load_checkpoint

    device = pick_device(args.device)
    if args.prepare:
        for data in args.data:
            for seed in args.seeds if data == 'demo' else [0]:
                prepare_images(data, seed, args.out, args.shared)
        return None
    table = [
        regime for regime in regimes() if regime.group in args.groups and (not args.only or regime.name in args.only)
    ]
    if args.only:
        table.sort(key=lambda regime: args.only.index(regime.name))
    index, count = map(int, args.shard.split('/'))
    jobs = [(seed, data, k) for seed in args.seeds for data in args.data for k in args.labelled or LABELLED[data]]
    for seed, data, k in jobs[index::count]:
        bank = base = started_at = None
        for regime in [Regime('start', steps=0), *table]:
            if regime.zero != (k == 0) and regime.steps:
                continue
            regime = replace(regime, steps=(args.steps or regime.steps) if regime.steps else 0, lr=args.lr or regime.lr)
            path = runs.path_of(args.out, data, k, seed, regime.name)
            if path.exists() or runs.is_late(args):
                continue
            if bank is None:
                policy = load_checkpoint(TINY).to(device).eval()
                bank = Bank(TINY, policy, *prepare_images(data, seed, args.out, args.shared), seed, device, data)
                base = labelled_base(bank, k, args.out, args.base_steps or BASE_STEPS)
            started = time.time()
            if started_at is None:
                started_at = score(load_checkpoint(base).to(device).eval(), bank, bank.test)
            if regime.steps:
                # On a GPU two trainings of one base are not equal to the bit: a recipe is held against its own.
                result = run_regime(base, bank, regime, k, seed)
                result.update({f'start_{name}': value for name, value in started_at.items()})
            else:
                result = started_at
            result = dict(
                data=data,
                labelled=k,
                train=len(bank.train),
                test=len(bank.test),
                regime=regime.name,
                seed=seed,
                rounds=regime.rounds,
                steps=regime.steps,
                lr=regime.lr,
                **result,
                seconds=round(time.time() - started, 1),
            )
            runs.write(path, result)


if __name__ == '__main__':
    main()
