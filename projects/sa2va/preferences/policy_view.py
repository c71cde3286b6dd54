"""What candidate sources may ask of the policy: logits of one image under views and perturbations.

Encoders run once per view and all decoder calls of a view share their output. Everything goes through the same
``encode_image`` / ``encode_prompt`` / ``decode`` that ``Sa2VAModel.mask_logits`` is made of.
"""
from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch

from ..models.sa2va import MaskOutput, Sa2VAModel, Sam2Features, upsample_logits


def _clahe(image: np.ndarray) -> np.ndarray:
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)


def _gamma(exponent: float):
    table = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
    return lambda image: table[image]


# View name -> (image -> image, logits of the view -> logits of the image). Geometry is undone exactly.
VIEWS = {
    'identity': (lambda a: a, lambda z: z),
    'hflip': (np.fliplr, np.fliplr),
    'vflip': (np.flipud, np.flipud),
    'rot90': (lambda a: np.rot90(a, 1), lambda z: np.rot90(z, -1)),
    'rot180': (lambda a: np.rot90(a, 2), lambda z: np.rot90(z, 2)),
    'rot270': (lambda a: np.rot90(a, 3), lambda z: np.rot90(z, -3)),
    'gamma0.7': (_gamma(0.7), lambda z: z),
    'gamma1.4': (_gamma(1.4), lambda z: z),
    'clahe': (_clahe, lambda z: z),
}


class PolicyView:
    """One image and prompt seen by the policy; answers are float32 logits [n, H, W] at the image's own size.

    Args:
        policy: in eval mode.
        preprocessor: its ``Sa2VAPreprocessor``.
        image: uint8 [H, W, 3].
        prompt: the question.
        seed: of the perturbations.
    """

    def __init__(self, policy: Sa2VAModel, preprocessor, image: np.ndarray, prompt: str, seed: list[int]) -> None:
        self.policy, self.pre, self.image, self.prompt = policy, preprocessor, image, prompt
        self.rng = np.random.default_rng(seed)
        self.encoded = lru_cache(maxsize=None)(self._encode)
        self.greedy = lru_cache(maxsize=None)(self._greedy)

    @torch.no_grad()
    def _encode(self, view: str) -> tuple[Sam2Features, torch.Tensor]:
        image = np.ascontiguousarray(VIEWS[view][0](self.image))
        device = next(self.policy.parameters()).device
        batch = {key: value.to(device) if torch.is_tensor(value) else value
                 for key, value in self.pre.collate([self.pre(image, self.prompt)]).items()}
        return self.policy.encode_image(batch['sam_pixel_values']), self.policy.encode_prompt(batch)

    def _greedy(self, view: str) -> MaskOutput:
        return self.decode(*self.encoded(view))

    @torch.no_grad()
    def decode(self, features: Sam2Features, embeddings: torch.Tensor) -> MaskOutput:
        """One decoder call for all ``embeddings`` [n, C] of this image."""
        return self.policy.decode(features, embeddings, torch.zeros(len(embeddings), dtype=torch.long))

    def to_image(self, low_res: torch.Tensor, view: str = 'identity') -> np.ndarray:
        """[n, h, w] decoder logits of a view -> [n, H, W] of the image."""
        height, width = self.image.shape[:2]
        if view in ('rot90', 'rot270'):
            height, width = width, height
        logits = upsample_logits(low_res.float(), self.policy.sam_size, (height, width)).cpu().numpy()
        return np.stack([VIEWS[view][1](z) for z in logits])

    def noise(self, shape, device: torch.device) -> torch.Tensor:
        """Standard normal numbers that depend on nothing but the seed and the calls so far."""
        return torch.from_numpy(self.rng.standard_normal(tuple(shape)).astype(np.float32)).to(device)
