"""Policies with random weights at released sizes, and one synthetic image with its pairs."""
from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Sequence

import numpy as np
import torch

from sa2va_dpo.datasets.image_views import InternVLImages
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.checkpoint import empty_weights, initialise, read_config, read_sam2_dims
from sa2va_dpo.models.mllm import family_of
from sa2va_dpo.models.sa2va import Sa2VAModel
from sa2va_dpo.models.variants import RELEASED

TINY = Path(__file__).resolve().parents[2] / 'projects/sa2va/assets/tiny_sa2va'
PROMPT = '<image>Please segment the blood vessels.'
VARIANTS = ['tiny', *(name for name, config in RELEASED.items() if family_of(config) == 'internvl')]


def variant_name(name: str) -> str:
    """``InternVL3-8B`` and ``Sa2VA-InternVL3-8B`` are the same; raises SystemExit for an unknown one."""
    for candidate in (name, f'Sa2VA-{name}'):
        if candidate in VARIANTS:
            return candidate
    raise SystemExit(f'error: --variant {name}: choose one of {", ".join(VARIANTS)}')


@dataclass(frozen=True)
class Variant:
    """Sizes and preprocessing of a variant; weights are made by :meth:`policy`."""

    name: str
    config: dict
    sam2_dims: dict | None
    pre: Sa2VAPreprocessor
    score_size: int

    @classmethod
    def named(cls, name: str) -> 'Variant':
        tiny = Sa2VAPreprocessor.from_pretrained(TINY)
        if name == 'tiny':
            return cls(name, read_config(TINY), read_sam2_dims(TINY), tiny, tiny.sam_size // 2)
        config = RELEASED[name]
        # The tiny checkpoint's tokenizer: released ones are not at hand, and only the number of tokens counts.
        return cls(name, config, None, Sa2VAPreprocessor(tiny.tokenizer, InternVLImages.from_config(config), 1024), 512)

    def policy(self, device: str, dtype: torch.dtype, with_mllm: bool = True) -> Sa2VAModel:
        """Random weights, made on ``device`` in ``dtype``: no file, no host memory."""
        with empty_weights():
            model = Sa2VAModel(self.config, self.sam2_dims, with_mllm=with_mllm)
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(
                        torch.full(parameter.shape, 0.1, dtype=dtype, device=device), requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(device)
        initialise(model)
        return model.eval()

    def image(self, seed: int = 0, pixels: Sequence[int] | None = None) -> np.ndarray:
        """Noise of some width and height; by default of a shape (4 : 3) that InternVL cuts into twelve tiles and a
        thumbnail."""
        width, height = pixels or (4 * self.pre.images.tile, 3 * self.pre.images.tile)
        return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)

    def data(self, images: int, candidates: int, truncate: bool = True, first_image: int = 0,
             pixels: Sequence[int] | None = None) -> dict:
        """What ``dpo_collate`` would give for ``images`` images with all pairs of ``candidates`` masks each."""
        samples = [self.pre(self.image(first_image + i, pixels), PROMPT, truncate_after_seg=truncate)
                   for i in range(images)]
        rng = np.random.default_rng(1)
        masks = torch.from_numpy(rng.integers(0, 2, (candidates, self.score_size, self.score_size), np.uint8)) * 255
        pairs = list(combinations(range(candidates), 2))
        chosen, rejected = (masks[[pair[side] for pair in pairs]].repeat(images, 1, 1) for side in (0, 1))
        return dict(batch=self.pre.collate(samples), chosen=chosen, rejected=rejected,
                    gaps=torch.full((len(chosen),), 0.1),
                    image_index=torch.arange(images).repeat_interleave(len(pairs)))
