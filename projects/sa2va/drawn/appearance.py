"""Pieces of image formation that the drawing styles share: smooth noise, light, blur, sensor noise, compression."""
from __future__ import annotations

import cv2
import numpy as np


def smooth_noise(rng: np.random.Generator, size: int, cells: float) -> np.ndarray:
    """Gaussian random field, float32 ``[size, size]``, zero mean, unit variance, about ``cells`` bumps a side."""
    n = int(max(3, min(size, round(cells * 2))))
    field = cv2.GaussianBlur(rng.standard_normal((n + 4, n + 4), dtype=np.float32), (0, 0), 0.8)
    field = cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / max(float(field.std()), 1e-6)


def ridges(rng: np.random.Generator, size: int, cells: float, sharpness: float = 3.0) -> np.ndarray:
    """A tangle of soft lines (zero crossings of smooth noise), float32 ``[size, size]`` in 0..1."""
    field = smooth_noise(rng, size, cells)
    return np.exp(-(field * sharpness) ** 2)


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of pixel centres as broadcastable float32 ``[1, size]`` and ``[size, 1]``."""
    axis = np.arange(size, dtype=np.float32)
    return axis[None, :], axis[:, None]


def blob(size: int, x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    """Normalised elliptic radius, float32 ``[size, size]``: 0 at the centre, 1 on the ellipse (pixels)."""
    gx, gy = grid(size)
    gx, gy = gx - x, gy - y
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = (gx * c + gy * s) / np.float32(rx), (gy * c - gx * s) / np.float32(ry)
    return np.sqrt(u * u + v * v)


def soft_edge(radius: np.ndarray, softness: float) -> np.ndarray:
    """1 inside radius 1, 0 outside, with a transition ``softness`` (relative to the radius) wide."""
    return np.clip((1.0 + softness / 2 - radius) / max(softness, 1e-6), 0.0, 1.0)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; sigma in pixels, nothing below 0.2."""
    return image if sigma < 0.2 else cv2.GaussianBlur(image, (0, 0), float(sigma))


def recompress(rng: np.random.Generator, image: np.ndarray, low: int, high: int) -> np.ndarray:
    """Through JPEG at a random quality and back; uint8 ``[H, W, 3]``."""
    ok, code = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(low, high + 1))])
    assert ok
    return cv2.imdecode(code, cv2.IMREAD_COLOR)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Float image on the 0..255 scale -> uint8, rounded and clipped."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
