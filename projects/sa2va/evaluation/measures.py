"""What a mask says about the vessels in it, without ground truth: area, length, branch and end points, components."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .counts import check_masks
from .topology import EIGHT, skeleton_of


@dataclass(frozen=True)
class VesselMeasures:
    """Of one mask [H, W]; lengths and areas in pixels of that mask.

    Attributes:
        vessel_px: pixels of the mask that are vessel.
        vessel_share: ``vessel_px`` / (H * W), 0 to 1.
        skeleton_length_px: length of the centrelines: a step to a horizontal or vertical neighbour counts 1, a diagonal
            one the square root of 2. A skeleton of one pixel has length 0.
        branch_points: places where three or more centrelines meet; neighbouring pixels of a meeting are one place.
        end_points: pixels of the skeleton with one neighbour.
        components: 8-connected parts of the mask.
    """

    vessel_px: int
    vessel_share: float
    skeleton_length_px: float
    branch_points: int
    end_points: int
    components: int


def vessel_measures(mask: np.ndarray) -> VesselMeasures:
    """The measures of a mask.

    The skeleton (``skimage.morphology.skeletonize``) is read as a graph of pixels: neighbours are joined, but
    diagonally only where no third pixel of the skeleton touches both along an edge (m-adjacency; Gonzalez and
    Woods, Digital Image Processing). A corner is two steps and no triangle, and a crossing of two lines is one branch
    point.

    Args:
        mask: bool [H, W].

    Raises:
        ValueError: not a two-dimensional bool array.
    """
    check_masks(mask)
    skeleton = skeleton_of(mask)
    straight, diagonal, degree = _steps(skeleton)
    pixels = int(mask.sum())
    return VesselMeasures(
        vessel_px=pixels,
        vessel_share=pixels / mask.size,
        skeleton_length_px=straight + diagonal * 2 ** 0.5,
        branch_points=int(ndimage.label(degree >= 3, structure=EIGHT)[1]),
        end_points=int((skeleton & (degree == 1)).sum()),
        components=int(ndimage.label(mask, structure=EIGHT)[1]),
    )


def _steps(skeleton: np.ndarray) -> tuple[int, int, np.ndarray]:
    """(straight steps, diagonal steps, int8 [H, W] steps that touch each pixel; 0 off the skeleton)."""
    s = np.pad(skeleton, 1)
    degree = np.zeros(s.shape, np.int8)
    counts = [0, 0]
    # Each pair of neighbours once: down, right, and the two diagonals down.
    for rows, columns in ((1, 0), (0, 1), (1, 1), (1, -1)):
        joined = s & np.roll(s, (-rows, -columns), (0, 1))
        if rows and columns:
            joined &= ~np.roll(s, (-rows, 0), (0, 1)) & ~np.roll(s, (0, -columns), (0, 1))
        counts[bool(rows and columns)] += int(joined.sum())
        degree += joined
        degree += np.roll(joined, (rows, columns), (0, 1))
    return counts[0], counts[1], degree[1:-1, 1:-1]
