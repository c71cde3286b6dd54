"""Does the prediction keep the vessel tree: centreline Dice and Betti numbers of 2-D masks."""
from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

from .counts import check_masks

EIGHT = np.ones((3, 3), dtype=bool)


def cldice(pred: np.ndarray, target: np.ndarray) -> float:
    """Centreline Dice (Shit et al., CVPR 2021, arXiv 2003.07311).

    Topology precision is the share of the prediction's skeleton that lies in the target, topology sensitivity the
    share of the target's skeleton that lies in the prediction; clDice is their harmonic mean. Skeletons by
    ``skimage.morphology.skeletonize``; a mask that is not empty has a skeleton that is not empty.

    Args:
        pred, target: bool [H, W].

    Returns:
        0 to 1; two empty masks score 1, one empty mask 0.

    Raises:
        ValueError: not two-dimensional bool arrays of one shape.
    """
    check_masks(pred, target)
    pred_skeleton, target_skeleton = skeleton_of(pred), skeleton_of(target)
    pred_length, target_length = int(pred_skeleton.sum()), int(target_skeleton.sum())
    if not pred_length or not target_length:
        return float(pred_length == target_length)
    precision = int((pred_skeleton & target).sum()) / pred_length
    sensitivity = int((target_skeleton & pred).sum()) / target_length
    if precision + sensitivity == 0:
        return 0.0
    return 2 * precision * sensitivity / (precision + sensitivity)


def betti_numbers(mask: np.ndarray) -> tuple[int, int]:
    """Number of components and of holes.

    b0 counts 8-connected components of the foreground. b1 counts holes: 4-connected components of the background
    that do not touch the border of the image (outside the image is background). With this pair of connectivities
    ``b0 - b1`` is the Euler number.

    Args:
        mask: bool [H, W].

    Raises:
        ValueError: not a two-dimensional bool array.
    """
    check_masks(mask)
    components = ndimage.label(mask, structure=EIGHT)[1]
    # The frame of background joins everything that touches the border into one component: the outside.
    background = np.pad(~mask, 1, constant_values=True)
    return int(components), int(ndimage.label(background)[1]) - 1


def betti_errors(pred: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """``(|b0(pred) - b0(target)|, |b1(pred) - b1(target)|)`` of the whole image.

    Papers often average this over small patches (Hu et al., arXiv 1906.05404); figures of the two kinds do not compare.

    Raises:
        ValueError: not two-dimensional bool arrays of one shape.
    """
    check_masks(pred, target)
    (pred_b0, pred_b1), (target_b0, target_b1) = betti_numbers(pred), betti_numbers(target)
    return abs(pred_b0 - target_b0), abs(pred_b1 - target_b1)


def skeleton_of(mask: np.ndarray) -> np.ndarray:
    """Centrelines of a mask, both bool [H, W], by ``skimage.morphology.skeletonize`` on the bounding box only."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    skeleton = np.zeros_like(mask)
    if rows.size:
        box = np.s_[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        skeleton[box] = skeletonize(np.ascontiguousarray(mask[box]))
    return skeleton
