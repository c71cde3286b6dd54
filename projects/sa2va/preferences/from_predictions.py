"""Candidates that exist on disk: one sub-folder per method, one mask per image."""
from __future__ import annotations

from functools import partial
from pathlib import Path

import cv2
import numpy as np

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.ground_truth import MaskFolder
from sa2va_dpo.datasets.mask_io import is_binary, read_probability

from .candidates import Context, Proposal
from .sources import Source


class Predictions(Source):
    """Predictions of several methods. The only source whose place is ``--images_dir``, so it is not in the registry.

    Args:
        directory: holds one folder per method; file stems are those of the images (suffixes as for ground truth).

    Raises:
        InputError: no such folder, or fewer than two methods.
    """

    needs_policy = False

    def __init__(self, directory: str | Path) -> None:
        directory = Path(directory)
        if not directory.is_dir():
            raise InputError(f'{directory}: no such folder: give the predictions folder, one sub-folder per method')
        methods = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith('.'))
        if len(methods) < 2:
            raise InputError(f'{directory}: holds {len(methods)} method folders, pairs need at least 2: '
                             'put the masks of every method into a sub-folder of its own')
        self.methods = {method.name: MaskFolder(method) for method in methods}

    def files(self, stem: str) -> dict[str, Path | None]:
        """Method -> its file for an image, ``None`` where it is missing."""
        return {name: folder.find(stem) for name, folder in self.methods.items()}

    def proposals(self, context: Context) -> list[Proposal]:
        """Every method's mask; methods without one are added to ``context.missing``."""
        found = []
        for name, path in self.files(context.stem).items():
            if path is None:
                context.missing.append(f'{name}/{context.stem}')
            else:
                found.append(Proposal(f'prediction:{name}', make=partial(read_prediction, path, context.size)))
        return found

    def mean(self, stem: str, size: tuple[int, int]) -> np.ndarray:
        """Mean of all methods' maps, float32 [H, W]: what they believe together."""
        return np.mean([read_map(path, size) for path in self.files(stem).values() if path], axis=0, dtype=np.float32)


def read_map(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A mask or grey probability map as float32 [H, W] in [0, 1].

    Probability maps are resized linearly, masks (nearly all pixels at the ends of the range) by nearest neighbour.
    """
    grey = read_probability(path)
    if grey.shape != size:
        how = cv2.INTER_NEAREST_EXACT if is_binary(grey) else cv2.INTER_LINEAR
        grey = cv2.resize(grey, size[::-1], interpolation=how)
    return grey


def read_prediction(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A mask or grey probability map as bool [H, W], cut at one half after resizing."""
    return read_map(path, size) > 0.5
