"""Tables, the plot of Dice against clicks, and shares of the labels' value, of the finished runs of
``label_study.py``."""
from __future__ import annotations

from pathlib import Path
from typing import Mapping

import numpy as np

from .report import interval
from .runs import read_all, write_csv

FIELDS = (
    'data',
    'labelled',
    'train',
    'test',
    'seed',
    'regime',
    'rounds',
    'steps',
    'lr',
    'dice',
    'cldice',
    'start_dice',
    'start_cldice',
    'validation',
    'clicks',
    'greedy_iou',
    'best_iou',
    'chosen_iou',
    'cells_changed',
    'comparisons',
    'taken_back',
    'mining_seconds',
    'seconds',
)


def gain(row: dict, start: dict, metric: str = 'dice') -> float:
    """Of a recipe over the base from which it began, as its row notes it; rows without that note began at ``start``."""
    began = row.get(f'start_{metric}')
    return row[metric] - (start[metric] if began is None else began)


def report(out: Path) -> None:
    """``results.csv``, ``results.md`` and ``results.png`` in ``out``."""
    from .regimes import regimes

    rows = read_all(out)
    if not rows:
        return
    write_csv(
        out,
        FIELDS,
        [{key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()} for row in rows],
    )
    value = {(r['data'], r['labelled'], r['regime'], r['seed']): r for r in rows}
    twins = {regime.name: regime.twin for regime in regimes()}
    order = ['start', *dict.fromkeys(regime.name for regime in regimes())]
    order += sorted({r['regime'] for r in rows} - set(order))
    lines = []
    for data, k in sorted({(r['data'], r['labelled']) for r in rows}):
        start = {s: r for (d, q, n, s), r in value.items() if (d, q, n) == (data, k, 'start')}
        full = {s: r for (d, q, n, s), r in value.items() if (d, q, n) == (data, k, 'all masks drawn')}
        one = next(iter(start.values()))
        lines += [
            f'\n### {data}: {k} labelled of {one["train"]}, {one["test"]} test images, start Dice '
            f'{np.mean([r["dice"] for r in start.values()]):.4f}, clDice '
            f'{np.mean([r["cldice"] for r in start.values()]):.4f}\n',
            '| regime | seeds | clicks | change of Dice | share of the labels\' value | change of clDice | worst seed '
            '| preference term alone |',
            '|---|---|---|---|---|---|---|---|',
        ]
        for name in order[1:]:
            runs = {s: r for (d, q, n, s), r in value.items() if (d, q, n) == (data, k, name) and s in start}
            if not runs:
                continue
            gains = [gain(runs[s], start[s]) for s in sorted(runs)]
            gap = [gain(full[s], start[s]) for s in sorted(runs) if s in full]
            share = f'{np.mean(gains) / np.mean(gap):.0%}' if len(gap) == len(gains) and np.mean(gap) > 0 else ''
            twin = twins.get(name)
            pairs = [
                gain(runs[s], start[s]) - gain(value[data, k, twin, s], start[s])
                for s in sorted(runs)
                if (data, k, twin, s) in value
            ]
            lines.append('| ' + ' | '.join([
                name, str(len(runs)), str(round(np.mean([r['clicks'] for r in runs.values()]))), interval(gains), share,
                interval([gain(runs[s], start[s], 'cldice') for s in sorted(runs)]), f'{min(gains):+.4f}',
                interval(pairs) if pairs else '']) + ' |')
    lines += pooled(value, twins)
    (out / 'results.md').write_text('\n'.join(lines) + '\n')
    print('\n'.join(lines))
    _plot(out, rows)


def pooled(value: Mapping[tuple, dict], twins: Mapping[str, str | None]) -> list[str]:
    """What the preference term adds by itself in a regime, over all data sets at once.

    Args:
        value: (data, k, regime, seed) -> row.
        twins: regime -> the same without the preference term.

    Returns:
        Lines of a table: every run is held against its twin on the same images and seed, all weigh alike; the interval
        is that of the mean over runs, data sets not told apart.
    """
    def change(key: tuple, row: dict) -> float:
        start = value.get((key[0], key[1], 'start', key[3]), row)
        return gain(row, start) - gain(value[twin_of(key)], start)

    def twin_of(key: tuple) -> tuple:
        return key[0], key[1], twins.get(key[2]), key[3]

    lines = ['\n### Preference term alone, all data sets\n',
             '| images with masks | regime | data sets | runs | change of Dice | above 0 |',
             '|---|---|---|---|---|---|']
    for some in (True, False):
        for name in twins:
            found = {key: change(key, row) for key, row in value.items()
                     if key[2] == name and bool(key[1]) == some and twin_of(key) in value}
            if found:
                sets = ', '.join(sorted({data for data, *_ in found}))
                lines.append(f'| {"a few" if some else "none"} | {name} | {sets} | {len(found)} | '
                             f'{interval(list(found.values()))} | {sum(one > 0 for one in found.values())} |')
    return lines


def _plot(out: Path, rows: list[dict]) -> None:
    """Test Dice against the number of clicks; drawn masks and no help at all on the same axis."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    panels = sorted({(r['data'], r['labelled']) for r in rows})
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.4 * columns, 3.6 * lines), squeeze=False)
    for axis in axes.flat[len(panels):]:
        axis.remove()
    for axis, (data, k) in zip(axes.flat, panels):
        start = {r['seed']: r for r in rows if (r['data'], r['labelled'], r['regime']) == (data, k, 'start')}

        def mean(name: str, key: str, data=data, k=k, start=start) -> float | None:
            found = [
                r for r in rows if (r['data'], r['labelled'], r['regime']) == (data, k, name) and r['seed'] in start
            ]
            if not found:
                return None
            if key == 'dice':  # by seed against its own start: recipes may have run on other seeds
                level = np.mean([r['dice'] for r in start.values()])
                return float(level + np.mean([gain(r, start[r['seed']]) for r in found]))
            return float(np.mean([r[key] for r in found]))

        for name, label, style in (('start', 'k labelled', 'k:'), ('all masks drawn', 'all masks drawn', 'C1--'),
                                   ('consensus, 4 rounds, guard', 'consensus, nobody looks', 'C7-.')):
            level = mean(name, 'dice')
            if level is not None:
                axis.plot([0, 1], [level, level], style, transform=axis.get_yaxis_transform(), label=label)
        for kind, colour, marker in (('picks', 'C0', 'o'), ('region picks', '0.3', 's')):
            for suffix, fill in (('', 'none'), (', normalised x 0.3', colour)):
                names = [f'{kind}, {rounds} round{"s" if rounds > 1 else ""}{suffix}' for rounds in (1, 4, 8)]
                points = sorted(
                    (mean(name, 'clicks'), mean(name, 'dice')) for name in names if mean(name, 'dice') is not None
                )
                if points:
                    axis.plot(*zip(*points), marker=marker, color=colour, markerfacecolor=fill, label=kind + suffix)
        axis.set_xlim(left=0)
        axis.set(title=f'{data}, k = {k}', xlabel='clicks', ylabel='test Dice')
        axis.legend(fontsize='x-small')
    figure.tight_layout()
    figure.savefig(out / 'results.png', dpi=110)
