"""Every metric of one image."""
from __future__ import annotations

import numpy as np

from .boundary import boundary_distance
from .counts import confusion_counts, dice, iou, precision, recall, specificity
from .topology import betti_errors, cldice

# In the order of tables and files. Higher is better for all but the last four.
METRIC_NAMES = ('dice', 'iou', 'precision', 'recall', 'specificity', 'cldice',
                'betti0_error', 'betti1_error', 'boundary_distance', 'hd95')


def score_mask(pred: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """All of :data:`METRIC_NAMES` for one pair of bool [H, W] masks.

    The last two are the mean and the 95th percentile of the boundary distance in pixels.

    Raises:
        ValueError: not two-dimensional bool arrays of one shape.
    """
    counts = confusion_counts(pred, target)
    betti0, betti1 = betti_errors(pred, target)
    boundary = boundary_distance(pred, target)
    return dict(dice=dice(counts), iou=iou(counts), precision=precision(counts), recall=recall(counts),
                specificity=specificity(counts), cldice=cldice(pred, target), betti0_error=float(betti0),
                betti1_error=float(betti1), boundary_distance=boundary.mean, hd95=boundary.hd95)
