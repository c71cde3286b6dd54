"""Which SAM2 input size suits the images: measured on training images, before anything is trained."""
from __future__ import annotations

import math
import tempfile
from pathlib import Path

from torch.utils.data import Dataset

from sa2va_dpo.evaluation.counts import confusion_counts, dice
from sa2va_dpo.evaluation.scores import within
from sa2va_dpo.models.checkpoint import copy_with_sam_size, read_sam2_dims

from .scoring import images_of, load_for_inference, predict_and_score, some_of

# Times the checkpoint's own size; the bundled one (640 px) may be tried at 512, 768 and 1024 px.
FACTORS = (0.8, 1.2, 1.6)
# Cost grows with the area: a size has to earn it.
MARGIN = 0.02
MAX_IMAGES = 16


def mean_dice(checkpoint: str | Path, source: Dataset, device: str, desc: str | None = None) -> float:
    """Mean Dice of a checkpoint over a source of images with masks (see ``VesselSegDataset``); ``desc`` names a
    progress bar."""
    model = load_for_inference(checkpoint, device)
    scored = predict_and_score(model, images_of(source, checkpoint), score=dice_only, desc=desc)
    return math.fsum(scores['dice'] for _, scores in scored) / len(source)


def dice_only(predicted, true, field_of_view=None) -> dict[str, float]:
    """A score for ``predict_and_score``."""
    return dict(dice=dice(confusion_counts(*within(predicted, true, field_of_view))))


def sizes_around(own: int) -> tuple[list[int], list[int]]:
    """The sizes to try beside ``own``, multiples of 64 pixels: (smaller ones, falling; larger ones, rising)."""
    sizes = sorted({max(64, 64 * round(own * factor / 64)) for factor in FACTORS} - {own})
    return [size for size in reversed(sizes) if size < own], [size for size in sizes if size > own]


def measure_sizes(checkpoint: str | Path, source: Dataset, device: str) -> dict[int, float]:
    """Mean Dice at the checkpoint's own input size (first) and at those around it, side in pixels -> Dice.

    A direction is followed as long as it gets better: the larger a size, the longer it takes to look at.

    Args:
        source: training images with masks; at most ``MAX_IMAGES``, evenly spread, are looked at.
    """
    some = some_of(source, MAX_IMAGES)
    own = read_sam2_dims(checkpoint)['image_size']
    found = {own: mean_dice(checkpoint, some, device, f'input at {own} px')}
    with tempfile.TemporaryDirectory() as folder:
        for direction in sizes_around(own):
            last = found[own]
            for size in direction:
                copy = copy_with_sam_size(checkpoint, Path(folder) / str(size), size)
                found[size] = mean_dice(copy, some, device, f'input at {size} px')
                if found[size] <= last:
                    break
                last = found[size]
    return found


def choose_size(measured: dict[int, float]) -> int:
    """The best size, but the checkpoint's own (the first) unless another is better by ``MARGIN``; of equals the
    smallest."""
    own = next(iter(measured))
    better = [size for size, value in measured.items() if value >= measured[own] + MARGIN]
    return min(better, key=lambda size: (-measured[size], size), default=own)
