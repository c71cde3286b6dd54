"""Test-time views: what the policy is shown, and how its map comes back to the image's own pixels.

Geometry is undone exactly (a flip or quarter turn moves pixels, it does not resample them; crops are pasted where
they were cut), so a view differs from the plain answer only by what the policy makes of it.
"""
from __future__ import annotations

from typing import Callable

import cv2
import numpy as np
import torch


class View:
    """One view.

    Methods:
        images: uint8 [H, W, 3] -> the pictures that the policy sees, each uint8 [h, w, 3].
        restore: their logits, each float [h, w] of its picture's size -> float [H, W] of the image.
    """

    def images(self, image: np.ndarray) -> list[np.ndarray]:
        return [image]

    def restore(self, logits: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        return logits[0]


class Tone(View):
    """Other grey levels, same geometry."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self.change = change

    def images(self, image):
        return [self.change(image)]


class Flip(View):
    """Mirrored along an axis: 0 upside down, 1 left and right."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def images(self, image):
        return [np.flip(image, self.axis)]

    def restore(self, logits, size):
        return logits[0].flip(self.axis)


class Turn(View):
    """Turned counter-clockwise by ``quarters`` of 90 degrees."""

    def __init__(self, quarters: int) -> None:
        self.quarters = quarters

    def images(self, image):
        return [np.rot90(image, self.quarters)]

    def restore(self, logits, size):
        return torch.rot90(logits[0], -self.quarters)


class ZoomOut(View):
    """The image in a mirrored frame: the policy sees it at ``scale`` times its size."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def _margins(self, size: tuple[int, int]) -> list[int]:
        return [round(side * (1 / self.scale - 1) / 2) for side in size]

    def images(self, image):
        top, left = self._margins(image.shape[:2])
        return [cv2.copyMakeBorder(image, top, top, left, left, cv2.BORDER_REFLECT)]

    def restore(self, logits, size):
        top, left = self._margins(size)
        return logits[0][top:top + size[0], left:left + size[1]]


class Tiles(View):
    """The image in ``grid`` x ``grid`` overlapping pieces, so thin vessels are larger; logits are averaged in
    overlaps."""

    def __init__(self, grid: int, overlap: float = 0.25) -> None:
        self.grid, self.overlap = grid, overlap

    def _windows(self, size: tuple[int, int]) -> list[tuple[slice, slice]]:
        spans = []
        for side in size:
            length = min(side, int(np.ceil(side * (1 + self.overlap) / self.grid)))
            spans.append([slice(start, start + length)
                          for start in np.rint(np.linspace(0, side - length, self.grid)).astype(int)])
        return [(rows, columns) for rows in spans[0] for columns in spans[1]]

    def images(self, image):
        return [image[window] for window in self._windows(image.shape[:2])]

    def restore(self, logits, size):
        total, times = torch.zeros(size, device=logits[0].device), torch.zeros(size, device=logits[0].device)
        for window, piece in zip(self._windows(size), logits):
            total[window] += piece
            times[window] += 1
        return total / times


def clahe(image: np.ndarray) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of the lightness."""
    lab = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def gamma(exponent: float) -> Callable[[np.ndarray], np.ndarray]:
    """Grey levels to the power of ``exponent``: below 1 brighter, above 1 darker."""
    table = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return lambda image: table[image]


VIEWS: dict[str, View] = {
    'identity': View(), 'hflip': Flip(1), 'vflip': Flip(0), 'rot90': Turn(1), 'rot180': Turn(2), 'rot270': Turn(3),
    'gamma0.7': Tone(gamma(0.7)), 'gamma1.4': Tone(gamma(1.4)), 'clahe': Tone(clahe),
    'zoom0.8': ZoomOut(0.8), 'tiles2': Tiles(2),
}
