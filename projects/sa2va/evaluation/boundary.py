"""How far the outlines of two masks lie apart, in pixels."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .counts import check_masks


@dataclass(frozen=True)
class BoundaryDistance:
    """Symmetric boundary distances in pixels.

    Attributes:
        mean: average symmetric surface distance: the mean over the pixels of both boundaries of the distance to the
            other boundary.
        hd95: the larger of the two directed 95th percentiles (Huttenlocher et al. 1993 have the maximum).
    """

    mean: float
    hd95: float


def boundary_distance(pred: np.ndarray, target: np.ndarray) -> BoundaryDistance:
    """Distances between the boundaries of two masks.

    A boundary pixel is a foreground pixel with a 4-neighbour in the background; outside the image is background.
    Two empty masks are 0 apart; if one is empty, both figures are the image's diagonal, which no other pair of masks
    reaches: a finite worst value keeps averages over images meaningful.

    Args:
        pred, target: bool [H, W].

    Raises:
        ValueError: not two-dimensional bool arrays of one shape.
    """
    check_masks(pred, target)
    if not pred.any() or not target.any():
        worst = 0.0 if pred.any() == target.any() else float(np.hypot(*pred.shape))
        return BoundaryDistance(mean=worst, hd95=worst)
    pred_edge, target_edge = _boundary(pred), _boundary(target)
    to_target = _distance_to(target_edge)[pred_edge]
    to_pred = _distance_to(pred_edge)[target_edge]
    mean = (to_target.sum() + to_pred.sum()) / (to_target.size + to_pred.size)
    hd95 = max(np.percentile(to_target, 95), np.percentile(to_pred, 95))
    return BoundaryDistance(mean=float(mean), hd95=float(hd95))


def _boundary(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _distance_to(edge: np.ndarray) -> np.ndarray:
    """Exact Euclidean distance of every pixel to the nearest pixel of ``edge``, float64."""
    found = cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # The last bit of OpenCV's roots follows from where its buffers lie in memory: of equal masks, two processes would
    # report two figures. Squares are whole numbers.
    return np.sqrt(np.rint(np.square(found, dtype=np.float64)))
