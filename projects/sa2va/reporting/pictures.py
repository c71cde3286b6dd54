"""The pictures of a report: one photograph an image and, over it, masks as layers of few colours.

A layer is lossless and some kilobytes small, and the page lays it over the photograph, so that an image costs one
photograph however many masks are shown of it.
"""
from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Sequence

import cv2
import numpy as np
from PIL import Image

from sa2va_dpo.evaluation.overlay import apart, changes

# Longest side in pixels, of the photograph and its layers.
MOST_PIXELS = 640
_JPEG_QUALITY = 84
# RGB of the classes of a layer; bright enough for the darkened photograph below.
GREY, BLUE, ORANGE = (222, 222, 222), (0, 150, 225), (240, 165, 0)
# Of what stayed as it was: the change beside it is what is looked for.
FAINT = (120, 120, 120)
# Steps of opacity: thin vessels of large images become see-through instead of vanishing.
_STEPS = 5


@dataclass(frozen=True)
class Panel:
    """One view of an image.

    Attributes:
        name: text key of what it shows.
        layer: data URI of what lies over the photograph; None shows the photograph as it is.
        legend: (colour class of the page, text key) of what is drawn.
    """

    name: str
    layer: str | None = None
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Picture:
    """A photograph (data URI), its size in pixels, and its panels."""

    photograph: str
    width: int
    height: int
    panels: tuple[Panel, ...]


_SCORED = (('grey', 'found'), ('orange', 'extra'), ('blue', 'missed'))
_CHANGED = (('blue', 'gained'), ('orange', 'lost'), ('faint', 'unchanged'))
_PAIR = (('blue', 'only_chosen'), ('orange', 'only_rejected'), ('grey', 'both'))


def case_picture(image: np.ndarray, truth: np.ndarray, after: np.ndarray, before: np.ndarray | None = None,
                 field: np.ndarray | None = None) -> Picture:
    """Image, mask before and after against the ground truth, and what changed.

    Args:
        image: uint8 [H, W, 3] RGB.
        truth, after, before: bool [h, w]; ``image`` is resized to them where its size differs.
        field: bool [h, w], True inside the field of view; outside nothing was scored and nothing is drawn.

    Raises:
        ValueError: masks of different sizes.
    """
    masks = [truth, after, *(mask for mask in (before, field) if mask is not None)]
    if len({mask.shape for mask in masks}) > 1:
        raise ValueError(f'masks of one image have different sizes: {", ".join(str(mask.shape) for mask in masks)}')
    inside = np.ones_like(truth) if field is None else field

    def scored(mask: np.ndarray) -> str:
        return _layer([region & inside for region in apart(mask, truth)], (GREY, ORANGE, BLUE))

    panels = [Panel('panel_image')]
    if before is not None:
        panels.append(Panel('panel_before', scored(before), _SCORED))
    panels.append(Panel('panel_after', scored(after), _SCORED))
    if before is not None:
        regions = [region & inside for region in changes(before, after, truth)]
        panels.append(Panel('panel_difference', _layer(regions, (BLUE, ORANGE, FAINT)), _CHANGED))
    else:
        panels.append(Panel('panel_truth', _layer([truth & inside], (GREY,)), (('grey', 'truth'),)))
    return _picture(image, truth.shape, panels)


def pair_picture(image: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> Picture:
    """Image, chosen mask, rejected mask and where they differ; bool [h, w] each.

    Raises:
        ValueError: masks of different sizes.
    """
    if chosen.shape != rejected.shape:
        raise ValueError(f'the masks of a pair have different sizes: {chosen.shape} and {rejected.shape}')
    both, only_chosen, only_rejected = apart(chosen, rejected)
    return _picture(image, chosen.shape, [
        Panel('panel_image'),
        Panel('chosen', _layer([chosen], (BLUE,)), (('blue', 'chosen'),)),
        Panel('rejected', _layer([rejected], (ORANGE,)), (('orange', 'rejected'),)),
        Panel('panel_difference', _layer([only_chosen, only_rejected, both], (BLUE, ORANGE, GREY)), _PAIR)])


def _picture(image: np.ndarray, shape: tuple[int, ...], panels: Sequence[Panel]) -> Picture:
    height, width = _small(shape)
    pixels = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'JPEG', quality=_JPEG_QUALITY, optimize=True)
    return Picture(_uri('jpeg', buffer), width, height, tuple(panels))


def _small(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the picture: never enlarged, the longest side at most ``MOST_PIXELS``."""
    factor = min(1.0, MOST_PIXELS / max(shape[:2]))
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _layer(regions: Sequence[np.ndarray], colours: Sequence[tuple[int, int, int]]) -> str:
    """Disjoint regions (bool [h, w]), each in its colour, as a small see-through PNG."""
    height, width = _small(regions[0].shape)
    cover = np.stack([cv2.resize(region.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
                      for region in regions])
    step = np.ceil(np.clip(cover.sum(0), 0, 1) * _STEPS - 1e-4).astype(np.uint8)
    index = np.where(step > 0, cover.argmax(0) * _STEPS + step, 0).astype(np.uint8)
    picture = Image.fromarray(index, 'P')
    palette, opacity = [(0, 0, 0)], [0]
    for colour in colours:
        for level in range(1, _STEPS + 1):
            palette.append(colour)
            opacity.append(round(235 * level / _STEPS))
    picture.putpalette([value for colour in palette for value in colour])
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG', bits=4, transparency=bytes(opacity), optimize=True)
    return _uri('png', buffer)


def _uri(kind: str, buffer: io.BytesIO) -> str:
    return f'data:image/{kind};base64,' + base64.b64encode(buffer.getvalue()).decode('ascii')
