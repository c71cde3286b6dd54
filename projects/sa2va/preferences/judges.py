"""Judges: how good is each candidate. Higher is better, 0 to 1, so one ``--min_iou_gap`` suits them all.

With ground truth: IoU (the guide's), Dice, ClDice, BettiError, BoundaryDistance. Without: Agreement, PredictedIoU,
ExpectedIoU, and those that vote (``votes.py``: Consensus, Committee); each of these estimates the IoU that ground truth
would give, so it can stand in the guide's fields (marked ``iou_estimated``).
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Sequence

import numpy as np
from mmengine.registry import Registry

from sa2va_dpo.evaluation.boundary import boundary_distance
from sa2va_dpo.evaluation.counts import mask_iou
from sa2va_dpo.evaluation.topology import betti_errors, betti_numbers, cldice

from .candidates import Candidate, Context

JUDGES = Registry('preference judge')


@dataclass
class Evidence:
    """What judges may look at.

    Attributes:
        gt: bool [H, W], ``None`` without ground truth.
        probability: gives the believed vessel probability, float32 [H, W], computed at first use.
        context: the image and the policy on it.
    """

    gt: np.ndarray | None
    probability: Callable[[], np.ndarray] | None = None
    context: Context | None = None
    _vote: np.ndarray | None = field(default=None, repr=False)

    def reference(self, candidates: Sequence[Candidate]) -> np.ndarray:
        """The ground truth, or the majority of the candidates where there is none (bool [H, W])."""
        if self.gt is not None:
            return self.gt
        if self._vote is None:
            self._vote = 2 * np.sum([c.mask for c in candidates], axis=0) > len(candidates)
        return self._vote


class Judge:
    """Base of judges. ``scores`` gives one number a candidate; NaN means that this judge cannot tell.

    Attributes:
        needs_ground_truth: only with it.
        needs_policy: asks the policy itself, so not for masks on disk.
        looks_at_pixels: has a ``belief``, so that it can judge parts of an image.
    """

    needs_ground_truth = True
    needs_policy = False
    looks_at_pixels = True

    def scores(self, candidates: Sequence[Candidate], evidence: Evidence) -> np.ndarray:
        return np.array([self.score(candidate.mask, evidence.gt) for candidate in candidates])

    def score(self, mask: np.ndarray, gt: np.ndarray) -> float:
        raise NotImplementedError

    def belief(self, candidates: Sequence[Candidate], evidence: Evidence) -> np.ndarray:
        """The vessel probability that this judge goes by, float32 [H, W]: the ground truth where it knows it."""
        return evidence.gt.astype(np.float32)

    def pick(self, values: Sequence[float], evidence: Evidence, label: str) -> int:
        """The index that this judge takes, given how good each is; ``label`` tells one decision of an image from
        another."""
        return int(np.argmax(values))


@JUDGES.register_module()
class IoU(Judge):
    """Intersection over union with the ground truth."""

    def score(self, mask, gt):
        return mask_iou(mask, gt)


@JUDGES.register_module()
class Dice(Judge):
    """Dice coefficient with the ground truth; ranks as IoU does, gaps differ."""

    def score(self, mask, gt):
        iou = mask_iou(mask, gt)
        return 2 * iou / (1 + iou)


@JUDGES.register_module()
class ClDice(Judge):
    """Centreline Dice (Shit et al., CVPR 2021): thin vessels count as much as thick ones."""

    def score(self, mask, gt):
        return cldice(mask, gt)


@JUDGES.register_module()
class BettiError(Judge):
    """Topology alone, as ARIADNE (arXiv 2603.19169) prefers: components and holes of the whole image.

    ``1 / (1 + e)`` with ``e = (|b0 - b0'| + |b1 - b1'|) / (1 + b0' + b1')``; b' are the ground truth's Betti numbers.
    A mask in the wrong place can score 1: mix this judge with another.
    """

    def score(self, mask, gt):
        return 1 / (1 + sum(betti_errors(mask, gt)) / (1 + sum(betti_numbers(gt))))


@JUDGES.register_module()
class BoundaryDistance(Judge):
    """``1 / (1 + d / tolerance)`` with d the mean symmetric boundary distance, pixels.

    Args:
        tolerance: distance in pixels that scores one half.
    """

    def __init__(self, tolerance: float = 5.0) -> None:
        self.tolerance = tolerance

    def score(self, mask, gt):
        return 1 / (1 + boundary_distance(mask, gt).mean / self.tolerance)


@JUDGES.register_module()
class Agreement(Judge):
    """Mean IoU with the other candidates: what most of them say is taken for the truth."""

    needs_ground_truth = False

    def scores(self, candidates, evidence):
        if len(candidates) < 2:
            return np.full(len(candidates), np.nan)
        table = np.array([[mask_iou(a.mask, b.mask) for b in candidates] for a in candidates])
        return (table.sum(1) - 1) / (len(candidates) - 1)

    def belief(self, candidates, evidence):
        return np.mean([c.mask for c in candidates], axis=0, dtype=np.float32)


@JUDGES.register_module()
class PredictedIoU(Judge):
    """SAM 2's own estimate; candidates that no policy made have none and make no pair."""

    needs_ground_truth = False
    looks_at_pixels = False

    def scores(self, candidates, evidence):
        values = [np.nan if c.predicted_iou is None else c.predicted_iou for c in candidates]
        return np.clip(np.array(values, float), 0, 1)


@JUDGES.register_module()
class ExpectedIoU(Judge):
    """Uncertainty: the IoU to be expected if every pixel is vessel with the believed probability p.

    Ratio of expectations ``sum(p m) / sum(p + m - p m)`` for a mask m. Believed is the policy's greedy map, or the
    mean of the methods' maps on disk.
    """

    needs_ground_truth = False

    def scores(self, candidates, evidence):
        return expected_iou(candidates, evidence.probability())

    def belief(self, candidates, evidence):
        return evidence.probability()


def expected_iou(candidates: Sequence[Candidate], p: np.ndarray) -> np.ndarray:
    """``sum(p m) / sum(p + m - p m)`` for each mask m, where every pixel is vessel with probability p (float [H,
    W])."""
    total = p.sum(dtype=np.float64)
    inside = [p[c.mask].sum(dtype=np.float64) for c in candidates]
    union = [total + np.count_nonzero(c.mask) - both for c, both in zip(candidates, inside)]
    return np.array([both / whole if whole > 0 else 1.0 for both, whole in zip(inside, union)])


class Mixture(Judge):
    """Weighted mean of judges.

    Args:
        judges: (weight, judge); weights are divided by their sum.
    """

    def __init__(self, judges: Sequence[tuple[float, Judge]]) -> None:
        total = sum(weight for weight, _ in judges)
        self.judges = [(weight / total, judge) for weight, judge in judges]
        self.needs_ground_truth = any(judge.needs_ground_truth for _, judge in judges)
        self.needs_policy = any(judge.needs_policy for _, judge in judges)
        self.looks_at_pixels = all(judge.looks_at_pixels for _, judge in judges)

    def scores(self, candidates, evidence):
        return sum(weight * judge.scores(candidates, evidence) for weight, judge in self.judges)

    def belief(self, candidates, evidence):
        return sum(weight * judge.belief(candidates, evidence) for weight, judge in self.judges)

    def pick(self, values, evidence, label):
        # Only one that judges alone can make its mistakes.
        return (self.judges[0][1] if len(self.judges) == 1 else super()).pick(values, evidence, label)

    @property
    def decides(self) -> bool:
        """Says which one is best and nothing about the others."""
        return any(getattr(judge, 'decides', False) for _, judge in self.judges)

    @property
    def name(self) -> str:
        """``IoU``, or ``0.5*IoU+0.5*ClDice``."""
        names = [type(judge).__name__ for _, judge in self.judges]
        return names[0] if len(names) == 1 else '+'.join(f'{w:g}*{name}' for (w, _), name in zip(self.judges, names))
