"""The demo domain: red-free scanning-laser images of the retina, a look that supervised training never sees.

The shift against ``fundus`` is set by one number, so that a checkpoint trained on the other styles can be made to start
anywhere between "nearly solved" (0) and "mostly lost" (2).
"""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .appearance import blob, blur, ridges, smooth_noise, soft_edge, to_uint8
from .fundus import compose
from .vessel_tree import FIELD, rasterise, support_mask


@dataclass(frozen=True)
class DemoShift:
    """How far the demo domain lies from the training styles.

    Attributes:
        strength: overall, 0 (a plain grey-green fundus) to 2; 1 is the default that the demo chain uses.
        contrast: vessel contrast at strength 0; falls with strength.
        reflex: central light reflex relative to the vessel's darkness; grows with strength.
        stripes: amplitude of the scan lines, grey levels at strength 1.
        speckle: multiplicative noise at strength 1.
        web: contrast of the choroidal web, which is darker than its surroundings here, at strength 1.
    """

    strength: float = 1.0
    contrast: float = 0.75
    reflex: float = 0.35
    stripes: float = 5.0
    speckle: float = 0.07
    web: float = 0.10


DEFAULT_SHIFT = DemoShift()


def draw_demo(rng: np.random.Generator, size: int, label_dilation_px: float = 0.0, shift: DemoShift = DEFAULT_SHIFT
              ) -> tuple[np.ndarray, np.ndarray]:
    """One demo image: (image uint8 ``[size, size, 3]`` RGB, mask uint8 ``[size, size]`` 0/255)."""
    s, k = shift.strength, size / FIELD
    scene = compose(rng, size)
    level = rng.uniform(95, 135)
    image = np.full((size, size), level, np.float32)
    image *= 1.0 + smooth_noise(rng, size, 4) * 0.05
    web = ridges(rng, size, rng.uniform(14, 22), 2.0)
    image *= 1.0 - web * (shift.web * s * rng.uniform(0.5, 1.2))
    fovea = scene.ellipse(scene.eye.fovea, scene.eye.disc_radius * 1.6)
    image *= 1.0 - 0.35 * np.exp(-fovea * fovea)
    # The laser sees the disc dark with a bright rim.
    disc = scene.ellipse(scene.eye.disc, scene.eye.disc_radius)
    image *= 1.0 + 0.25 * np.exp(-((disc - 1.0) / 0.15) ** 2) - 0.2 * s * soft_edge(disc, 0.3)

    contrast = shift.contrast * rng.uniform(0.8, 1.2) / (1.0 + 0.7 * s)
    for paths, depth in ((scene.veins, 1.0), (scene.arteries, 0.75)):
        if not paths:
            continue
        dark = blur(rasterise(paths, size, ((1.0, 0.8), (0.7, 1.0))), 0.6 * k)
        streak = blur(rasterise(paths, size, ((0.45, 1.0),), min_width=2.0 * k), 0.5 * k)
        image *= 1.0 - contrast * depth * (dark - shift.reflex * (0.4 + s) * streak)
    image *= 1.0 - 0.3 * np.clip(scene.fov_radius, 0, 1.3) ** 3
    rows = np.cumsum(rng.standard_normal(size).astype(np.float32))
    rows -= cv2.GaussianBlur(rows[:, None], (1, 0), 1, sigmaY=12)[:, 0] if size > 40 else rows.mean()
    rows = rows / max(float(rows.std()), 1e-6) + 0.6 * rng.standard_normal(size).astype(np.float32)
    image += rows[:, None] * np.float32(shift.stripes * s)
    grain = rng.standard_normal((size, size), dtype=np.float32)
    image *= 1.0 + blur(grain, 0.8 * k) * np.float32(shift.speckle * s * 2)
    veil = np.float32(12.0 * s)
    image = (image + veil) * scene.fov + 6.0 * (1 - scene.fov)
    if rng.random() < 0.5:  # lid or lash shadow
        lid = blob(size, rng.uniform(0.2, 0.8) * size, size * rng.choice([-0.25, 1.25]), 0.8 * size, 0.45 * size)
        image *= 1.0 - 0.5 * soft_edge(lid, 0.5)
    tint = np.array([0.42 + 0.2 * (1 - min(s, 1)), 1.0, 0.55], np.float32)
    image = to_uint8(blur(image, 0.4 * k)[..., None] * tint)
    mask = support_mask(scene.vessels, size, label_dilation_px)[1]
    mask[scene.fov < 0.5] = 0
    return image, mask
