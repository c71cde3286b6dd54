"""Outlines of masks: polygons and COCO's run lengths."""
from __future__ import annotations

import numpy as np
from pycocotools import mask as rle

from sa2va_dpo.common.errors import InputError

# Of a coordinate: pycocotools walks along every edge pixel by pixel and counts in 32 bits.
_FARTHEST = 1 << 17


def decode(where: str, segmentation, shape: tuple[int, int]) -> np.ndarray:
    """A segmentation as bool [H, W].

    Polygons follow pycocotools: several polygons are joined, so a hole drawn as a polygon is filled. Run-length
        encodings,
    compressed or not, keep their holes.

    Args:
        where: place for messages.
        segmentation: list of polygons ``[x1, y1, x2, y2, ...]``, or ``dict(size=[H, W], counts=...)``.

    Raises:
        InputError: it is neither, or does not fit the shape.
    """
    height, width = shape
    if isinstance(segmentation, list):
        for polygon in segmentation:
            numbers = isinstance(polygon, list) and all(
                isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) <= _FARTHEST for v in polygon)
            if not numbers or len(polygon) < 6 or len(polygon) % 2:
                raise InputError(f'{where}: segmentation must hold polygons [x1, y1, x2, y2, x3, y3, ...] of numbers '
                                 f'up to {_FARTHEST}')
        if not segmentation:
            return np.zeros(shape, bool)
        return rle.decode(rle.merge(rle.frPyObjects(segmentation, height, width))).astype(bool)
    if not isinstance(segmentation, dict) or 'counts' not in segmentation:
        raise InputError(f'{where}: segmentation must be a list of polygons or a run-length encoding')
    if segmentation.get('size') != [height, width]:
        raise InputError(f'{where}: segmentation size is {segmentation.get("size")}, its image is {[height, width]}')
    counts = segmentation['counts']
    if isinstance(counts, list):
        # Checked here: pycocotools writes beyond its buffer when the runs do not fit the image.
        if (
            not all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in counts)
            or sum(counts) != height * width
        ):
            raise InputError(
                f'{where}: segmentation counts must be whole numbers that add up to {height * width} pixels'
            )
        values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return values.reshape(width, height).T
    if not isinstance(counts, str):
        raise InputError(f'{where}: segmentation counts must be text or a list')
    runs = _runs(where, counts)
    if sum(runs) != height * width or min(runs) < 0:
        raise InputError(f'{where}: segmentation counts add up to {sum(runs)}, its image has {height * width} pixels')
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _runs(where: str, text: str) -> list[int]:
    """Run lengths of COCO's compressed text: 5-bit groups, sign in the last, differences from the run before last."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            raise InputError(f'{where}: segmentation counts are not a run-length encoding')
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift or not runs:
        raise InputError(f'{where}: segmentation counts are cut short')
    return runs
