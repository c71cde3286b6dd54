"""Masks as training targets: area-averaged soft masks on a square, packed for transport."""
from __future__ import annotations

import cv2
import numpy as np


def soft_target(mask: np.ndarray, size: int) -> np.ndarray:
    """A binary mask resampled to ``size`` x ``size`` without losing thin structures.

    Each axis that shrinks is area-averaged, each axis that grows is interpolated linearly. ``nearest`` would
    erase or break vessels thinner than the sampling step (docs/method.md has the measured ceilings).

    Args:
        mask: bool [H, W].
        size: side of the square in pixels; the aspect ratio is not kept, as SAM2's own input does not keep it.

    Returns:
        uint8 [size, size]; 255 means wholly inside the mask. One step is 1/255 of a pixel's area.
    """
    soft = mask.astype(np.float32)
    for axis in (0, 1):
        length = soft.shape[axis]
        shape = (soft.shape[1], size) if axis == 0 else (size, soft.shape[0])
        if length != size:
            soft = cv2.resize(soft, shape, interpolation=cv2.INTER_AREA if length > size else cv2.INTER_LINEAR)
    return np.rint(soft * 255).astype(np.uint8)


def flip(array: np.ndarray, horizontal: bool, vertical: bool) -> np.ndarray:
    """Mirror the last two spatial axes of an [H, W] or [H, W, 3] array; a contiguous copy where anything changes."""
    if horizontal:
        array = array[:, ::-1]
    if vertical:
        array = array[::-1]
    return np.ascontiguousarray(array)
