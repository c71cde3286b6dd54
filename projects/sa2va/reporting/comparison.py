"""The figures of a test, beside those of an earlier one on the same images, and the verdict on them."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.evaluation.bootstrap import bootstrap_ci
from sa2va_dpo.evaluation.paired import PairedChange, paired_change
from sa2va_dpo.evaluation.report import read_per_image
from sa2va_dpo.evaluation.scores import LOWER_IS_BETTER

Rows = Sequence[Mapping[str, Any]]
# What the verdict looks at.
METRIC = 'dice'
_SURE = 0.05


@dataclass(frozen=True)
class Mean:
    """A mean over images and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], seed: int = 0) -> 'Mean':
        return cls(float(np.mean(values)), *bootstrap_ci(values, seed=seed))


@dataclass(frozen=True)
class Line:
    """One metric: ``start`` is the untrained start at another input size, where training used one.

    Attributes:
        outcome: ``'better'`` or ``'worse'`` where interval and test agree that the mean changed, ``'unclear'``
            otherwise, ``''`` without a before.
    """

    metric: str
    after: Mean
    before: Mean | None = None
    start: Mean | None = None
    change: PairedChange | None = None
    outcome: str = ''

    @property
    def lower_is_better(self) -> bool:
        return self.metric in LOWER_IS_BETTER

    @property
    def digits(self) -> int:
        """Places after the point; pixels and counts of pieces need no four."""
        return 2 if self.lower_is_better else 4

    @property
    def improved(self) -> int:
        """Images on which the metric became better."""
        assert self.change is not None, 'only with a before'
        return self.change.lower if self.lower_is_better else self.change.higher

    @property
    def worsened(self) -> int:
        assert self.change is not None, 'only with a before'
        return self.change.higher if self.lower_is_better else self.change.lower


@dataclass(frozen=True)
class Verdict:
    """What the first sentence says: the text ``verdict_<kind>`` with these values.

    Attributes:
        tone: ``'good'``, ``'bad'`` or ``'plain'``.
    """

    kind: str
    tone: str
    values: dict[str, Any] = field(default_factory=dict)


def lines(after: Rows, before: Rows | None = None, start: Rows | None = None, seed: int = 0) -> list[Line]:
    """A line a metric.

    Args:
        after, before, start: scores of the same images in the same order.

    Raises:
        InputError: they are not of the same images.
    """
    for other in (before, start):
        if other is not None and [row['image_id'] for row in other] != [row['image_id'] for row in after]:
            raise InputError(f'before has {len(other)} images and after {len(after)}, or others: test both on the same '
                             'images')
    return [_line(name, after, before, start, seed) for name in after[0] if name != 'image_id']


def read_lines(after: Path, before: Path | None = None, start: Path | None = None, seed: int = 0
               ) -> tuple[list[Line], Rows, Rows | None]:
    """:func:`lines` of folders that tests wrote, and the scores ``after`` and ``before`` that they are of.

    Raises:
        InputError: a table of scores is missing or damaged, or the tests are of other images.
    """
    rows = read_per_image(after)
    earlier, untrained = (None if folder is None else read_per_image(folder) for folder in (before, start))
    return lines(rows, earlier, untrained, seed), rows, earlier


def _line(name: str, after: Rows, before: Rows | None, start: Rows | None, seed: int) -> Line:
    def values(rows: Rows) -> list[float]:
        return [row[name] for row in rows]

    change = paired_change(values(before), values(after), seed) if before is not None and name in before[0] else None
    return Line(
        name,
        Mean.of(values(after), seed),
        Mean.of(values(before), seed) if change is not None and before is not None else None,
        Mean.of(values(start), seed) if start is not None and name in start[0] else None,
        change,
        '' if change is None else outcome(change, name in LOWER_IS_BETTER),
    )


def outcome(change: PairedChange, lower_is_better: bool = False) -> str:
    """See ``Line.outcome``."""
    if change.p_value is None or change.p_value >= _SURE or change.low <= 0 <= change.high:
        return 'unclear'
    return 'better' if (change.mean > 0) != lower_is_better else 'worse'


def test_verdict(found: Sequence[Line], images: int) -> Verdict:
    """Of a test, with or without a before."""
    line = next(line for line in found if line.metric == METRIC)
    values = dict(n=images, after=f'{line.after.mean:.4f}', after_low=f'{line.after.low:.4f}',
                  after_high=f'{line.after.high:.4f}')
    if line.change is None or line.before is None:
        return Verdict('tested', 'plain', values)
    values.update(before=f'{line.before.mean:.4f}', change=f'{line.change.mean:+.4f}', low=f'{line.change.low:+.4f}',
                  high=f'{line.change.high:+.4f}', improved=line.improved)
    return Verdict(line.outcome, dict(better='good', worse='bad').get(line.outcome, 'plain'), values)


def job_verdict(summary: Mapping[str, Any], found: Sequence[Line], images: int) -> Verdict:
    """Of a job: what training was worth on validation images decides what is handed back, the test judges it.

    Args:
        summary: what ``summary.json`` of the job holds.
        found: empty where there was no test.
    """
    if summary.get('validation_dice') is None:
        if not found:
            return Verdict('unseen', 'bad')
        tested = test_verdict(found, images)
        return Verdict(f'{tested.kind}_unvalidated', 'good' if tested.tone == 'good' else 'bad', tested.values)
    if summary.get('best_checkpoint') is None:
        own, kept = (summary.get('sam_size') or {}).get('own'), summary.get('exported_sam_size')
        values = dict(summary['validation_dice'], size=kept)
        values = {name: f'{value:.4f}' if isinstance(value, float) else value for name, value in values.items()}
        return Verdict('kept' if kept in (None, own) else 'kept_resized', 'bad', values)
    return test_verdict(found, images) if found else Verdict('untested', 'plain', {
        name: f'{value:.4f}' for name, value in summary['validation_dice'].items()})
