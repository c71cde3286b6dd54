"""How closely to look at the images at hand: measured by short supervised trainings on training images.

An untrained checkpoint may lose with tiles where a trained one gains, and the other way round, so every way of looking
is trained for a few steps on some training patients and scored on the others. Nothing that is trained here is kept.
"""
from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from sa2va_dpo.common.console import progress
from sa2va_dpo.datasets.draws import Draw
from sa2va_dpo.datasets.seg_dataset import VesselSegDataset, vessel_seg_collate
from sa2va_dpo.models.checkpoint import is_released_size, read_sam2_dims
from sa2va_dpo.models.sa2va_seg_model import Sa2VASegModel
from sa2va_dpo.models.tiled import moved

from .input_size import dice_only
from .scoring import images_of, predict_and_score, some_of

STEPS, BATCH, LR, WARMUP = 60, 4, 3e-4, 10
HELD_OUT = 0.25
# A grid costs so many times what a whole image costs: it has to earn it. At this margin probes of four data sets and
# five splits chose nothing that lost on test images (docs/resolution.md).
MARGIN = 0.01
MOST_SCORED = 8
_MOVES = dict(sam2_neck='full', projector='full', mask_decoder='full')


@dataclass
class Looks:
    """What was measured.

    Attributes:
        dice: name of a way of looking (``'640 px, grid 2'``) -> Dice on held-out training images.
        seconds: of all of it.
    """

    dice: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Look:
    """A checkpoint directory (its input size) and a grid."""

    checkpoint: str
    size: int
    grid: int

    def __str__(self) -> str:
        return f'{self.size} px, grid {self.grid}'

    @property
    def cost(self) -> int:
        """SAM2's input pixels for one image."""
        return (self.size * self.grid) ** 2


def looks_at(checkpoints: Sequence[str | Path], grids: Sequence[int]) -> list[Look]:
    """The first checkpoint with every grid, the others (the same weights at another input size) with whole images;
    cheapest first."""
    first, *others = checkpoints
    found = [Look(str(first), read_sam2_dims(first)['image_size'], grid) for grid in grids]
    found += [Look(str(other), read_sam2_dims(other)['image_size'], 1) for other in others]
    return sorted(found, key=lambda look: look.cost)


def trained_dice(look: Look, fit: Dataset, held: Dataset, device: str, seed: int, steps: int = STEPS) -> float:
    """Mean Dice on ``held`` after ``steps`` supervised steps on ``fit``; both are sources of ``VesselSegDataset``.

    SAM2 is trained (its image encoder by LoRA where the checkpoint is of released size), the language model is not.
    """
    large = is_released_size(look.checkpoint)
    encoder = dict(mode='lora', r=32, alpha=64) if large else 'full'
    # Frozen weights of a released size in bfloat16, what moves in float32.
    dtypes = dict(dtype='bfloat16', trainable_dtype='float32') if large and device != 'cpu' else {}
    torch.manual_seed(seed)
    model = Sa2VASegModel(look.checkpoint, dict(_MOVES, sam2_encoder=encoder), score_size=look.size // 2,
                          cldice_weight=0.5, device=device, **dtypes).to(device)
    data = VesselSegDataset(fit, look.checkpoint, training=True, score_size=look.size // 2, flip_prob=0.5, seed=seed,
                            view=dict(grid=look.grid))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, LR, betas=(0.9, 0.999), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _rate(done, steps))
    rng = np.random.default_rng([seed, 31])
    batch_size = min(BATCH, len(data)) if not large else 1
    model.train()
    for number in progress(range(steps), desc=f'probe {look}', unit='step'):
        picked = rng.choice(len(data), batch_size, replace=False)
        items = [data[Draw(int(index), number * BATCH + place, 0, seed)] for place, index in enumerate(picked)]
        losses = model(**moved(vessel_seg_collate(items, look.checkpoint), device), mode='loss')
        optimizer.zero_grad(set_to_none=True)
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    images = images_of(some_of(held, MOST_SCORED), look.checkpoint, dict(grid=look.grid))
    scored = [scores['dice'] for _, scores in predict_and_score(model, images, score=dice_only)]
    return math.fsum(scored) / len(scored)


def _rate(done: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a tenth, as a share of the peak."""
    return min((done + 1) / WARMUP, 1.0) * (
        0.55 + 0.45 * math.cos(math.pi * max(0, done - WARMUP) / max(1, steps - WARMUP)))


def measure_looks(looks: Sequence[Look], fit: Dataset, held: Dataset, device: str, seed: int,
                  steps: int = STEPS) -> Looks:
    """Probe every look, cheapest first; the grids of a checkpoint are followed as long as each is better than the one
    before."""
    began, found = time.monotonic(), {}
    last: dict[str, float] = {}
    finished: set[str] = set()
    for look in looks:
        if look.checkpoint in finished:
            continue
        value = found[str(look)] = trained_dice(look, fit, held, device, seed, steps)
        if value <= last.get(look.checkpoint, -1.0):
            finished.add(look.checkpoint)
        last[look.checkpoint] = value
    return Looks(found, time.monotonic() - began)


def choose_look(looks: Sequence[Look], measured: Mapping[str, float]) -> Look:
    """The cheapest look, unless a dearer one is better by ``MARGIN`` than what would be taken without it."""
    chosen = looks[0]
    for look in looks[1:]:
        if str(look) in measured and measured[str(look)] >= measured[str(chosen)] + MARGIN:
            chosen = look
    return chosen
