"""One entry to all drawing styles: ``draw(style, index, seed)`` is a pure function of its arguments."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np

from sa2va_dpo.common.errors import InputError

from .angiogram import draw_angiogram
from .demo import DEFAULT_SHIFT, DemoShift, draw_demo
from .fundus import draw_fundus

# Raised whenever the same (style, seed, index) comes out differently, so that caches of an older drawing are not
# reused.
VERSION = 2

# Codes enter the seed and never change. What a style draws is defined in its module.
STYLES: dict[str, tuple[int, Callable[..., tuple[np.ndarray, np.ndarray]]]] = {
    'fundus': (1, draw_fundus), 'angiogram': (2, draw_angiogram), 'demo': (3, draw_demo)}


@dataclass(frozen=True)
class DrawnSample:
    """A drawn image with its ground truth.

    Attributes:
        image: uint8 ``[H, W, 3]``, RGB.
        mask: uint8 ``[H, W]``, 255 on vessels, else 0.
        style: name of the style.
    """

    image: np.ndarray
    mask: np.ndarray
    style: str


def check_style(style: str, where: str = 'style') -> None:
    """Raises :class:`InputError` for a style that does not exist."""
    if style not in STYLES:
        raise InputError(f'{where}: {style!r} is no drawing style; choose one of {", ".join(STYLES)}')


def draw(style: str, index: int, seed: int, size: int = 512, label_dilation_px: float = 0.0,
         shift: DemoShift | None = None) -> DrawnSample:
    """Draw sample ``index`` of the endless sequence (style, seed).

    The result depends on the arguments only: not on the process, nor on what was drawn before.

    Args:
        style: ``fundus``, ``angiogram`` or ``demo``.
        index: position in the sequence, from 0.
        seed: of the sequence, from 0.
        size: side of the square image in pixels, at least 64.
        label_dilation_px: added to the radius of every labelled vessel, in pixels; the image stays as it is. For
            building a base that over-segments.
        shift: distance of the demo domain from the others, for style ``demo`` only; ``None`` is its default.

    Raises:
        InputError: unknown style, negative number, or too small a size.
    """
    check_style(style)
    for name, value, least in (('index', index, 0), ('seed', seed, 0), ('size', size, 64),
                               ('label_dilation_px', label_dilation_px, 0)):
        if value < least:
            raise InputError(f'draw: {name} is {value}; it must be at least {least}')
    code, painter = STYLES[style]
    rng = np.random.default_rng(np.random.SeedSequence([code, int(seed), int(index)]))
    options = dict(shift=shift or DEFAULT_SHIFT) if style == 'demo' else {}
    image, mask = painter(rng, int(size), float(label_dilation_px), **options)
    return DrawnSample(np.ascontiguousarray(image), np.ascontiguousarray(mask), style)
