"""Scored candidates of one image -> preference pairs.

A strategy proposes pairs in order of preference; the gap, the balance and the cap are applied to all of them alike.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Callable, Iterable, Sequence

import numpy as np
from mmengine.registry import Registry

from sa2va_dpo.datasets.annotations import SAME, reaches_gap
from sa2va_dpo.evaluation.counts import confusion_counts, dice
from sa2va_dpo.evaluation.topology import cldice

PAIRINGS = Registry('pairing strategy')
Pair = tuple[int, int]  # (chosen, rejected) candidate indices


@dataclass
class Scored:
    """Candidates of one image with their scores.

    Attributes:
        scores: higher is better; candidates that the judge could not score are NaN.
        masks: bool [H, W] each.
        reference: ground truth, or the candidates' majority.
        composed: pairs that ``scores`` does not rank, with the scores of both masks, best first: those put together
            from parts (``composite.py``) and those of ``TopologyMatched``. The others go by ``scores``.
    """

    scores: Sequence[float]
    masks: Sequence[np.ndarray]
    reference: np.ndarray
    composed: dict[Pair, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def order(self) -> list[int]:
        """Candidates with a score, best first; equal scores by index."""
        known = [i for i, score in enumerate(self.scores) if np.isfinite(score)]
        return sorted(known, key=lambda i: (-self.scores[i], i))

    @cached_property
    def cldice(self) -> list[float]:
        return [cldice(mask, self.reference) for mask in self.masks]

    @cached_property
    def dice(self) -> list[float]:
        return [dice(confusion_counts(mask, self.reference)) for mask in self.masks]

    def gap(self, pair: Pair) -> float:
        """Difference of scores, unrounded, as it is written."""
        chosen, rejected = self.pair_scores(pair)
        return chosen - rejected

    def clarity(self, pair: Pair) -> float:
        """The gap, for sorting: equal where only the noise of floating point differs."""
        return round(self.gap(pair), 9)

    def pair_scores(self, pair: Pair) -> tuple[float, float]:
        return self.composed.get(pair) or (self.scores[pair[0]], self.scores[pair[1]])

    def over_segments(self, index: int) -> bool:
        """Whether a mask has more false than missed pixels."""
        return self.masks[index].sum() > self.reference.sum()


@PAIRINGS.register_module()
class AllPairs:
    """Every pair: those of the best candidate first, then by falling gap."""

    def __call__(self, scored: Scored) -> Iterable[Pair]:
        pairs = list(combinations(scored.order, 2))
        return sorted(pairs, key=lambda pair: (pair[0] != scored.order[0], -scored.clarity(pair), pair))


@PAIRINGS.register_module()
class BestVsWorst:
    """One pair an image, the clearest."""

    def __call__(self, scored: Scored) -> Iterable[Pair]:
        return [(scored.order[0], scored.order[-1])] if len(scored.order) > 1 else []


@PAIRINGS.register_module()
class BestVsEach:
    """The best against every other, largest gap first."""

    def __call__(self, scored: Scored) -> Iterable[Pair]:
        return [(scored.order[0], other) for other in scored.order[:0:-1]]


@PAIRINGS.register_module()
class Adjacent:
    """Neighbours in the ranking, largest gap first: every candidate is chosen once and rejected once."""

    def __call__(self, scored: Scored) -> Iterable[Pair]:
        return sorted(zip(scored.order, scored.order[1:]), key=lambda pair: (-scored.clarity(pair), pair))


@PAIRINGS.register_module()
class Components:
    """Each connected component on which the best and the greedy mask differ as a pair of its own: two masks that differ
    there only, so that one pair says one thing. The miner makes the masks (``composite.py``)."""

    def __call__(self, scored: Scored) -> Iterable[Pair]:
        return list(scored.composed)


@PAIRINGS.register_module()
class HardNegatives:
    """Small disagreement, large difference of centreline Dice: few pixels that decide whether vessels connect.

    Pairs by falling ``|clDice difference| / (disagreeing pixels / pixels of the reference)``.
    """

    def __call__(self, scored: Scored) -> Iterable[Pair]:
        size = max(1, np.count_nonzero(scored.reference))

        def hardness(pair: Pair) -> float:
            differ = np.count_nonzero(scored.masks[pair[0]] != scored.masks[pair[1]])
            return abs(scored.cldice[pair[0]] - scored.cldice[pair[1]]) * size / max(1, differ)

        return sorted(combinations(scored.order, 2), key=lambda pair: (-hardness(pair), pair))


@PAIRINGS.register_module()
class TopologyMatched:
    """Masks that overlap the reference equally well and differ in whether the vessels hang together: the better clDice
    is chosen, largest difference first. Size and thickness, which Dice goes by, say nothing in such a pair.

    The scores of a pair are the two clDice, whatever the judge is; so is the smallest gap.

    Args:
        dice_tolerance: Dice of the two masks with the reference may differ by this much.
    """

    def __init__(self, dice_tolerance: float = 0.01) -> None:
        self.dice_tolerance = dice_tolerance

    def __call__(self, scored: Scored) -> Iterable[Pair]:
        for pair in combinations(scored.order, 2):
            if abs(scored.dice[pair[0]] - scored.dice[pair[1]]) <= self.dice_tolerance + SAME:
                chosen, rejected = sorted(pair, key=lambda i: (-scored.cldice[i], i))
                scored.composed[chosen, rejected] = scored.cldice[chosen], scored.cldice[rejected]
        return sorted(scored.composed, key=lambda pair: (-scored.clarity(pair), pair))


def select_pairs(strategy: Callable[[Scored], Iterable[Pair]], scored: Scored, min_gap: float, limit: int | None = None,
                 balance: bool = False) -> tuple[list[Pair], int]:
    """The pairs of one image.

    Args:
        strategy: proposes pairs.
        scored: the candidates.
        min_gap: smaller differences make no pair; a tie never does.
        limit: pairs per image; ``None`` keeps all.
        balance: take rejected masks that over-segment and that under-segment in turn, equally many of both where the
            image has both.

    Returns:
        The pairs and how many were dropped for their gap.
    """
    proposed = list(strategy(scored))
    pairs = [pair for pair in proposed if scored.gap(pair) > SAME and reaches_gap(scored.gap(pair), min_gap)]
    dropped = len(proposed) - len(pairs)
    if balance:
        over = [pair for pair in pairs if scored.over_segments(pair[1])]
        under = [pair for pair in pairs if not scored.over_segments(pair[1])]
        if over and under:
            pairs = [pair for both in zip(over, under) for pair in both]
    return pairs[:limit], dropped
