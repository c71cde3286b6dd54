"""The figures of a report."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sa2va_dpo.datasets.names import printable

from .svg import BLUE, GREY, INK, ORANGE, embed, style
from .text import Text

# Inches. Narrow, so that the text keeps its size on a phone.
_WIDE, _SQUARE = (4.4, 2.7), (4.4, 4.1)
_MOST_SOURCES = 12


@dataclass(frozen=True)
class Series:
    """One line of a plot: ``x`` iterations, ``y`` values of equal length."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = BLUE
    dashed: bool = False
    points: bool = False


@dataclass(frozen=True)
class Marks:
    """What happened at which iteration: alarms, beginnings of rounds, the checkpoint that was taken."""

    alarms: Sequence[int] = ()
    rounds: Sequence[int] = ()
    taken: int | None = None


def _axes(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout='constrained')
    return figure, figure.add_subplot()


def scatter(before: Sequence[float], after: Sequence[float], names: Sequence[str], shown: Mapping[int, str],
            metric: str, text: Text) -> Markup:
    """Every image, before against after; above the diagonal it became better.

    Args:
        shown: index -> name of the picture that a click on the point opens.
    """
    with style():
        figure, axes = _axes(_SQUARE)
        low = max(0.0, min(*before, *after) - 0.03)
        high = min(1.0, max(*before, *after) + 0.03)
        axes.plot([low, high], [low, high], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        change = np.subtract(after, before)
        colours = [BLUE if value > 0 else ORANGE if value < 0 else GREY for value in change]
        axes.scatter(before, after, s=[34 if i in shown else 16 for i in range(len(names))], c=colours,
                     edgecolors=[INK if i in shown else colour for i, colour in enumerate(colours)], linewidths=0.9,
                     gid='cases')
        axes.set(xlim=(low, high), ylim=(low, high), xlabel=text('axis_before', metric=metric),
                 ylabel=text('axis_after', metric=metric), aspect='equal')
        points = [_point(f'{name}: {first:.4f} → {second:.4f}', shown.get(i))
                  for i, (name, first, second) in enumerate(zip(names, before, after))]
        return embed(figure, 'scatter', text('scatter_label', metric=metric), dict(cases=points))


def ranked(values: Sequence[float], names: Sequence[str], shown: Mapping[int, str], metric: str, text: Text) -> Markup:
    """Every image, worst first; for a test without a 'before'."""
    with style():
        figure, axes = _axes(_WIDE)
        order = np.argsort(values, kind='stable')
        axes.axhline(float(np.mean(values)), color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.scatter(np.arange(1, len(order) + 1), np.asarray(values)[order],
                     s=[34 if i in shown else 16 for i in order], c=BLUE,
                     edgecolors=[INK if i in shown else BLUE for i in order], linewidths=0.9, gid='cases')
        axes.set(xlabel=text('axis_rank'), ylabel=metric)
        points = [_point(f'{names[i]}: {values[i]:.4f}', shown.get(i)) for i in order]
        return embed(figure, 'ranked', text('ranked_label', metric=metric), dict(cases=points))


def curve(name: str, lines: Sequence[Series], label: str, marks: Marks, text: Text) -> Markup:
    """Values over iterations, with alarms, rounds and the checkpoint that was taken."""
    with style():
        figure, axes = _axes(_WIDE)
        for line in lines:
            axes.plot(line.x, line.y, color=line.colour, label=line.label, linestyle='--' if line.dashed else '-',
                      marker='o' if line.points else None, markersize=4)
        for index, at in enumerate(marks.rounds):
            axes.axvline(at, color=GREY, linewidth=0.8, linestyle=':', label=text('mark_round') if not index else None)
        if marks.taken is not None:
            axes.axvline(marks.taken, color=INK, linewidth=0.9, label=text('mark_taken'))
        if marks.alarms:
            bottom = axes.get_ylim()[0]
            axes.plot(marks.alarms, [bottom] * len(marks.alarms), linestyle='', marker='^', markersize=9, color=ORANGE,
                      clip_on=False, label=text('mark_alarm'))
            axes.set_ylim(bottom=bottom)
        axes.set(xlabel=text('axis_iteration'), ylabel=label)
        _legend(axes)
        return embed(figure, name, label)


def gap_histogram(gaps: Sequence[float], least: float | None, text: Text) -> Markup:
    """How far the two masks of a pair lie apart in the judge's eyes."""
    with style():
        figure, axes = _axes(_WIDE)
        axes.hist(gaps, bins=np.histogram_bin_edges(gaps, bins=min(30, max(5, len(set(gaps))))), color=BLUE)
        if least is not None:
            axes.axvline(least, color=ORANGE, linestyle='--', label=text('mark_min_gap', value=f'{least:g}'))
            _legend(axes)
        axes.set(xlabel=text('axis_gap'), ylabel=text('axis_pairs'))
        return embed(figure, 'gaps', text('gaps_label'))


def sources(wins: Mapping[str, tuple[int, int]], text: Text) -> Markup:
    """How often a mask of each source was chosen and rejected."""
    kept = sorted(wins.items(), key=lambda item: -sum(item[1]))[:_MOST_SOURCES][::-1]
    with style():
        figure, axes = _axes((4.4, max(1.5, 0.28 * len(kept) + 0.9)))
        at = np.arange(len(kept))
        axes.barh(at, [won for _, (won, _) in kept], color=BLUE, height=0.7, label=text('chosen'))
        axes.barh(at, [-lost for _, (_, lost) in kept], color=ORANGE, height=0.7, label=text('rejected'))
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(at, [_short(name) for name, _ in kept])
        axes.grid(axis='y', visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: f'{abs(value):g}')
        axes.set(xlabel=text('axis_pairs'))
        _legend(axes)
        return embed(figure, 'sources', text('sources_label'))


def _point(title: str, opens: str | None) -> dict[str, str]:
    """The attributes of a point: what a pointer over it says, and which picture it opens."""
    return {'title': printable(title), **({'data-open': opens, 'tabindex': '0', 'role': 'button'} if opens else {})}


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.figure.legend(handles, labels, loc='outside upper left', ncols=2, handlelength=1.6, borderaxespad=0)


def _short(name: str) -> str:
    # A dollar would begin a formula.
    name = name.replace('$', r'\$')
    return name if len(name) <= 24 else f'{name[:21]}...'
