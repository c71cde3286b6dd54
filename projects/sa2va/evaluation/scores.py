"""Every metric of one image."""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from .boundary import boundary_distance
from .counts import check_masks, confusion_counts, dice, iou, precision, recall, specificity
from .topology import betti_errors, cldice

# Higher is better for all others.
LOWER_IS_BETTER = ('betti0_error', 'betti1_error', 'boundary_distance', 'hd95')
# In the order of tables and files.
METRIC_NAMES = ('dice', 'iou', 'precision', 'recall', 'specificity', 'cldice', *LOWER_IS_BETTER)


def score_mask(pred: np.ndarray, target: np.ndarray, field_of_view: np.ndarray | None = None) -> dict[str, float]:
    """All of :data:`METRIC_NAMES` for one pair of bool [H, W] masks.

    Pixels outside the field of view (bool [H, W], True inside) do not count: overlap is counted over the pixels inside,
    and for topology and boundaries both masks are empty outside.

    The last two are the mean and the 95th percentile of the boundary distance in pixels.

    Raises:
        ValueError: not two-dimensional bool arrays of one shape, or an empty field of view.
    """
    pred, target = within(pred, target, field_of_view)
    counts = confusion_counts(pred, target)
    if field_of_view is not None:
        counts = replace(counts, tn=counts.tn - int(np.count_nonzero(~field_of_view)))
    betti0, betti1 = betti_errors(pred, target)
    boundary = boundary_distance(pred, target)
    return dict(dice=dice(counts), iou=iou(counts), precision=precision(counts), recall=recall(counts),
                specificity=specificity(counts), cldice=cldice(pred, target), betti0_error=float(betti0),
                betti1_error=float(betti1), boundary_distance=boundary.mean, hd95=boundary.hd95)


def within(pred: np.ndarray, target: np.ndarray, field_of_view: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Both masks, empty outside the field of view; as they are without one.

    Raises:
        ValueError: not two-dimensional bool arrays of one shape, or an empty field of view.
    """
    if field_of_view is None:
        return pred, target
    check_masks(pred, target, field_of_view)
    if not field_of_view.any():
        raise ValueError('the field of view is empty: there is no pixel to score')
    return pred & field_of_view, target & field_of_view
