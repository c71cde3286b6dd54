"""Candidates that exist on disk: one sub-folder per method, one mask per image."""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ..datasets.ground_truth import match_ground_truth
from ..datasets.mask_io import is_binary, list_images, read_probability
from ..errors import InputError
from .sources import Candidate


class PredictionFolders:
    """Predictions of several methods.

    Args:
        directory: holds one folder per method; file stems are those of the images (suffixes as for ground truth).

    Attributes:
        missing: ``method/stem`` of every image that a method has no mask for, filled while candidates are read.

    Raises:
        InputError: no such folder, or fewer than two methods.
    """

    def __init__(self, directory: str | Path) -> None:
        directory = Path(directory)
        if not directory.is_dir():
            raise InputError(f'{directory}: no such folder: give the predictions folder, one sub-folder per method')
        self.methods = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith('.'))
        if len(self.methods) < 2:
            raise InputError(f'{directory}: holds {len(self.methods)} method folders, pairs need at least 2: '
                             'put the masks of every method into a sub-folder of its own')
        self.missing: list[str] = []
        self._files = {method: list_images(method) for method in self.methods}

    def candidates(self, image: Path, shape: tuple[int, int]) -> list[list[Candidate]]:
        """Every method's mask of ``image`` at ``shape`` (H, W), one list per method."""
        found = []
        for method in self.methods:
            matched, _ = match_ground_truth([image], method)
            if not matched:
                self.missing.append(f'{method.name}/{image.stem}')
                continue
            found.append([Candidate(read_prediction(matched[0][1], shape), f'prediction:{method.name}')])
        return found


def read_prediction(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """A mask or a grey probability map as bool [H, W], cut at one half.

    Probability maps are resized linearly before the cut, masks by nearest neighbour.
    """
    grey = read_probability(path)
    if grey.shape != shape:
        how = cv2.INTER_NEAREST if is_binary(grey) else cv2.INTER_LINEAR
        grey = cv2.resize(grey, shape[::-1], interpolation=how)
    return grey > 0.5
