"""Masks put together from parts of candidates: the best of each cell, and pairs that differ in one place only."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

import numpy as np
from scipy import ndimage

_EIGHT = np.ones((3, 3), bool)


def cell_composite(masks: Sequence[np.ndarray], belief: np.ndarray, cells: int,
                   pick: Callable[[Sequence[float], str], int] | None = None) -> np.ndarray:
    """The best candidate of every cell of a grid, put together.

    Args:
        masks: bool [H, W] each.
        belief: vessel probability, float [H, W]; of the judge (ground truth: 0 and 1).
        cells: the image is cut into ``cells`` x ``cells`` nearly equal rectangles, at most one a pixel.
        pick: given the expected share of right pixels of each mask in a cell and the cell's name, the index to take;
            None takes the best, the first of equal ones.

    Returns:
        bool [H, W].
    """
    out = np.zeros(belief.shape, bool)
    for i, rows in enumerate(_spans(belief.shape[0], cells)):
        for j, columns in enumerate(_spans(belief.shape[1], cells)):
            p = belief[rows, columns]
            right = [float(np.where(mask[rows, columns], p, 1 - p).mean()) for mask in masks]
            index = int(np.argmax(right)) if pick is None else pick(right, f'cell {i} {j}')
            out[rows, columns] = masks[index][rows, columns]
    return out


def _spans(length: int, parts: int) -> list[slice]:
    edges = np.linspace(0, length, min(parts, length) + 1).round().astype(int)
    return [slice(a, b) for a, b in zip(edges, edges[1:])]


@dataclass(frozen=True)
class ComponentPair:
    """Attributes:
        other: bool [H, W], as ``best`` but for one connected component, where it is as the second mask.
        best_is_right: whether ``best`` has the component right.
        agreement: expected share of the component's pixels on which the better of the two is right, above one half.
        pixels: size of the component.
    """

    other: np.ndarray
    best_is_right: bool
    agreement: float
    pixels: int


def component_pairs(best: np.ndarray, second: np.ndarray, belief: np.ndarray, largest: int = 8,
                    smallest: int = 9) -> list[ComponentPair]:
    """Each connected component of the disagreement of two masks (by edges and corners) as a pair of its own.

    Which of the two masks has it right may differ from place to place.

    Args:
        best, second: bool [H, W].
        belief: vessel probability, float [H, W].
        largest: how many components, the largest first.
        smallest: components of fewer pixels give no pair, nor do those on which nothing is preferred.
    """
    labels, count = ndimage.label(best != second, structure=_EIGHT)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    pairs = []
    for index in np.argsort(-sizes, kind='stable')[:largest]:
        if sizes[index] < smallest:
            break
        region = labels == index + 1
        agreement = float(np.where(best[region], belief[region], 1 - belief[region]).mean())
        if agreement != 0.5:
            pairs.append(ComponentPair(np.where(region, second, best), agreement > 0.5, max(agreement, 1 - agreement),
                                       int(sizes[index])))
    return pairs
