"""Does a judge rank candidates as the ground truth does? Kendall's tau on labelled images, with a bootstrap interval.

Kendall, "A new measure of rank correlation", Biometrika 1938; tau-b, which allows for ties. 1: the same order, 0: no
relation, -1: the opposite order.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Mapping, Sequence

import numpy as np
from scipy.stats import kendalltau

RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class Agreement:
    """Attributes:
        tau: mean over images; None where no image says anything.
        low, high: bounds of the percentile bootstrap over images at ``CONFIDENCE``; None below two images.
        taus: of each image that says something: two candidates that differ in IoU.
    """

    tau: float | None
    low: float | None
    high: float | None
    taus: tuple[float, ...] = ()

    @classmethod
    def of(cls, taus: Sequence[float], seed: int = 0) -> 'Agreement':
        """From the tau of every image that says something."""
        taus = tuple(round(float(tau), 6) for tau in taus)
        if not taus:
            return cls(None, None, None)
        low = high = None
        if len(taus) > 1:
            means = np.random.default_rng(seed).choice(taus, (RESAMPLES, len(taus))).mean(1)
            low, high = (round(float(q), 6) for q in np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
        return cls(round(float(np.mean(taus)), 6), low, high, taus)

    @property
    def images(self) -> int:
        return len(self.taus)

    @property
    def trusted(self) -> bool:
        """Whether its word may stand in for labels: tau is above 0 and, from two images on, so is the interval."""
        return self.tau is not None and self.tau > 0 and (self.low is None or self.low > 0)

    def __str__(self) -> str:
        if self.tau is None:
            return 'no image on which it could be measured'
        interval = '' if self.low is None else f' ({CONFIDENCE:.0%} interval {self.low:.2f} to {self.high:.2f})'
        return f'{self.tau:.2f}{interval} over {self.images} images'

    def to_json(self) -> dict:
        return dict(asdict(self), images=self.images, trusted=self.trusted)


def agreement(ious: Sequence[Sequence[float]], scores: Sequence[Sequence[float | None]], seed: int = 0) -> Agreement:
    """How a judge's scores go with IoU.

    Args:
        ious: of the candidates of each image, with the ground truth.
        scores: the judge's, in the same order; None where it could not tell.
        seed: of the bootstrap.
    """
    taus = []
    for truth, said in zip(ious, scores, strict=True):
        known = [(t, s) for t, s in zip(truth, said, strict=True) if s is not None and np.isfinite(s)]
        if len({t for t, _ in known}) > 1:
            # A judge that holds all candidates equal says nothing about their order.
            tau = kendalltau(*zip(*known)).statistic if len({s for _, s in known}) > 1 else 0.0
            taus.append(float(tau))
    return Agreement.of(taus, seed)


def agreement_of_entries(entries: Sequence[Mapping], seed: int = 0) -> dict[str, Agreement]:
    """The agreement of every compared judge, from the candidates of mined images (see ``Miner``).

    Ground truth among the candidates is left out: its place is known to all.
    """
    names = sorted({name for entry in entries for c in entry['candidates'] for name in c.get('compared', {})})
    rows = [[c for c in entry['candidates'] if c['source'] != 'ground_truth' and c['iou'] is not None]
            for entry in entries]
    return {name: agreement([[c['iou'] for c in row] for row in rows],
                            [[c['compared'].get(name) for c in row] for row in rows], seed) for name in names}
