"""results.csv, results.md (mean and 95 % t interval over seeds) and results.png of the finished runs."""
from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import stats

from .runs import read_all, write_csv
from .table import cells

METRICS = ('dice', 'cldice', 'precision', 'recall', 'iou', 'betti0_error', 'betti1_error')
_LEAST_SHOWN = -0.08
LOGS = ('train_accuracy', 'train_margin', 'train_saturation', 'train_drift_outside', 'seconds')


def interval(values) -> str:
    """``mean ± half width`` of the 95 % t interval; the mean alone for one value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return f'{values.mean():+.4f}'
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f'{values.mean():+.4f} ± {half:.4f}'


def report(out: Path) -> None:
    rows = read_all(out)
    if not rows:
        return
    write_csv(out, ['base', 'data', 'cell', 'seed', *METRICS, *LOGS], rows)
    value = {(r['base'], r['data'], r['cell'], r['seed']): r for r in rows}
    twins = {cell.name: cell.twin for cell in cells()}
    order = ['start', *(cell.name for cell in cells())]
    lines = []
    for base, data in sorted({(r['base'], r['data']) for r in rows}):
        lines += [
            f'\n### {data}, base {base}\n',
            '| recipe | seeds | Dice | change of Dice | change of clDice | preference term alone: Dice | clDice | '
            'accuracy |',
            '|---|---|---|---|---|---|---|---|',
        ]
        for name in order:
            seeds = sorted(s for b, d, c, s in value if (b, d, c) == (base, data, name))
            if not seeds:
                continue
            runs = {s: value[base, data, name, s] for s in seeds}

            def against(other: str | None, metric: str) -> str:
                common = [s for s in seeds if (base, data, other, s) in value]
                return (
                    interval([runs[s][metric] - value[base, data, other, s][metric] for s in common]) if common else ''
                )

            accuracy = [r['train_accuracy'] for r in runs.values() if 'train_accuracy' in r]
            lines.append(
                '| '
                + ' | '.join(
                    [
                        name,
                        str(len(seeds)),
                        f'{np.mean([r["dice"] for r in runs.values()]):.4f}',
                        '' if name == 'start' else against('start', 'dice'),
                        '' if name == 'start' else against('start', 'cldice'),
                        against(twins.get(name), 'dice'),
                        against(twins.get(name), 'cldice'),
                        f'{np.mean(accuracy):.2f}' if accuracy else '',
                    ]
                )
                + ' |'
            )
    (out / 'results.md').write_text('\n'.join(lines) + '\n')
    print('\n'.join(lines))
    _plot(out, rows, order)


def _plot(out: Path, rows: list[dict], order: list[str]) -> None:
    """Change of test Dice by recipe, one dot a seed, one panel a (base, data)."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    panels = sorted({(r['base'], r['data']) for r in rows})
    start = {(r['base'], r['data'], r['seed']): r['dice'] for r in rows if r['cell'] == 'start'}
    names = [n for n in order if n != 'start' and any(r['cell'] == n for r in rows)]
    if not names:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(4 + 2.2 * len(panels), 1.5 + 0.25 * len(names)), sharey=True,
                                squeeze=False)
    for axis, (base, data) in zip(axes[0], panels):
        for y, name in enumerate(names):
            x = [r['dice'] - start[base, data, r['seed']] for r in rows
                 if (r['base'], r['data'], r['cell']) == (base, data, name) and (base, data, r['seed']) in start]
            inside = [v for v in x if v >= _LEAST_SHOWN]
            axis.plot(inside, [y] * len(inside), 'o', color='tab:blue', alpha=0.6, markersize=4)
            if len(inside) < len(x):  # collapsed runs would squeeze the rest into one point
                axis.plot(_LEAST_SHOWN, y, '<', color='tab:orange', markersize=5)
        axis.axvline(0, color='grey', lw=1)
        axis.set(title=f'{data}, {base}', yticks=range(len(names)), yticklabels=names)
    axes[0][0].invert_yaxis()
    figure.supxlabel(f'change of test Dice (orange: below {_LEAST_SHOWN:g})', fontsize='medium')
    figure.tight_layout()
    figure.savefig(out / 'results.png', dpi=110)
