"""One counting function; every overlap metric is a function of its counts.

Conventions for 0/0, the same for every metric here: identical masks (no false positive, no false negative) score 1,
also where both are empty or both full, because an empty prediction of an empty target is right; any other 0/0 is 0,
for example the precision of an empty prediction of a target that is not empty. In torchmetrics' terms:
``zero_division=1`` for identical masks and its default 0 otherwise.
"""
from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Sequence

import numpy as np


@dataclass(frozen=True)
class Counts:
    """Pixels of a binary confusion: true/false positives, false/true negatives. Counts of several images add up."""

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: 'Counts') -> 'Counts':
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)


def confusion_counts(pred: np.ndarray, target: np.ndarray) -> Counts:
    """Count pixels.

    Args:
        pred: bool [H, W].
        target: bool [H, W].

    Raises:
        ValueError: not two-dimensional bool arrays of one shape.
    """
    check_masks(pred, target)
    tp = int(np.count_nonzero(pred & target))
    fp = int(np.count_nonzero(pred)) - tp
    fn = int(np.count_nonzero(target)) - tp
    return Counts(tp=tp, fp=fp, fn=fn, tn=pred.size - tp - fp - fn)


def dice(counts: Counts) -> float:
    """``2 TP / (2 TP + FP + FN)``, the F1 score (Dice 1945)."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, counts)


def iou(counts: Counts) -> float:
    """``TP / (TP + FP + FN)`` (Jaccard 1912)."""
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn, counts)


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """:func:`iou` of two masks, bool [H, W]; two empty ones agree (1)."""
    return iou(confusion_counts(a, b))


def disagreement(masks: Sequence[np.ndarray]) -> float:
    """1 - mean IoU over all pairs of masks, bool [H, W] each; 0 below two."""
    found = [mask_iou(first, second) for first, second in combinations(masks, 2)]
    return 1 - sum(found) / len(found) if found else 0.0


def precision(counts: Counts) -> float:
    """``TP / (TP + FP)``."""
    return _ratio(counts.tp, counts.tp + counts.fp, counts)


def recall(counts: Counts) -> float:
    """``TP / (TP + FN)``, also called sensitivity."""
    return _ratio(counts.tp, counts.tp + counts.fn, counts)


def specificity(counts: Counts) -> float:
    """``TN / (TN + FP)``."""
    return _ratio(counts.tn, counts.tn + counts.fp, counts)


def check_masks(*masks: np.ndarray) -> None:
    """Raise ``ValueError`` unless all are two-dimensional bool arrays of one shape with at least one pixel."""
    for mask in masks:
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
            found = f'{mask.dtype} {mask.shape}' if isinstance(mask, np.ndarray) else type(mask).__name__
            raise ValueError(f'a mask must be a bool array [H, W], not {found}')
        if mask.shape != masks[0].shape:
            raise ValueError(f'prediction {masks[0].shape} and target {mask.shape} must have one shape')


def _ratio(part: int, whole: int, counts: Counts) -> float:
    if whole == 0:
        return 1.0 if counts.fp == counts.fn == 0 else 0.0
    return part / whole
