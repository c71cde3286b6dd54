"""Errors that vessel segmentations make, done to a correct mask on purpose. Pure functions of masks and a random
stream."""
from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage
from skimage.morphology import skeletonize

_EIGHT = np.ones((3, 3), bool)
_DISC = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))


def thicken(mask: np.ndarray, pixels: int = 1) -> np.ndarray:
    """Every vessel wider by ``pixels`` on each side. bool [H, W] -> bool [H, W]."""
    return cv2.dilate(mask.astype(np.uint8), _DISC, iterations=pixels).astype(bool)


def thin(mask: np.ndarray, pixels: int = 1) -> np.ndarray:
    """Every vessel narrower by ``pixels`` on each side, but its centreline stays."""
    eroded = cv2.erode(mask.astype(np.uint8), _DISC, iterations=pixels).astype(bool)
    return eroded | (skeletonize(mask) & mask)


def smooth(mask: np.ndarray, pixels: int = 1) -> np.ndarray:
    """Small holes and gaps closed, then specks removed."""
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, _DISC, iterations=pixels)
    return cv2.morphologyEx(closed, cv2.MORPH_OPEN, _DISC, iterations=pixels).astype(bool)


def branches(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Every vessel pixel's branch number.

    The centreline is cut at its forks; a pixel belongs to the branch whose centreline is nearest.

    Returns:
        int32 [H, W], 0 outside the mask, and the number of branches.
    """
    skeleton = skeletonize(mask)
    neighbours = ndimage.convolve(skeleton.astype(np.uint8), _EIGHT.astype(np.uint8), mode='constant') - 1
    segments = skeleton & (neighbours <= 2)
    labels, count = ndimage.label(segments, structure=_EIGHT)
    if not count:
        return np.zeros(mask.shape, np.int32), 0
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return np.where(mask, labels[tuple(nearest)], 0).astype(np.int32), count


def drop_branches(mask: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """About ``share`` of the branches missing, short and long ones alike, at least one."""
    labels, count = branches(mask)
    if not count:
        return mask.copy()
    gone = rng.choice(np.arange(1, count + 1), max(1, round(share * count)), replace=False)
    return mask & ~np.isin(labels, gone)


def break_centrelines(mask: np.ndarray, gaps: int, rng: np.random.Generator) -> np.ndarray:
    """``gaps`` short interruptions: a disc half as wide again as the vessel is cut out of it."""
    points = np.argwhere(skeletonize(mask))
    if not len(points):
        return mask.copy()
    radius = ndimage.distance_transform_edt(mask)
    cut = np.zeros(mask.shape, np.uint8)
    for y, x in points[rng.choice(len(points), min(gaps, len(points)), replace=False)]:
        cv2.circle(cut, (int(x), int(y)), int(np.ceil(1.5 * radius[y, x])) + 1, 1, -1)
    return mask & ~cut.astype(bool)


def false_branches(mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` curved side branches that do not exist, each leaving a vessel and as wide as half of it."""
    points = np.argwhere(skeletonize(mask))
    if not len(points):
        return mask.copy()
    radius = ndimage.distance_transform_edt(mask)
    drawn = mask.astype(np.uint8)
    length = 0.2 * min(mask.shape)
    for y, x in points[rng.choice(len(points), min(count, len(points)), replace=False)]:
        heading = rng.uniform(0, 2 * np.pi)
        position, path = np.array([x, y], float), []
        for _ in range(12):
            path.append(position.copy())
            heading += rng.normal(0, 0.25)
            position += length / 12 * np.array([np.cos(heading), np.sin(heading)])
        cv2.polylines(drawn, [np.rint(path).astype(np.int32)], False, 1, max(1, round(float(radius[y, x]))))
    return drawn.astype(bool)
