"""Masks drawn on images: where a prediction is right and wrong, or what it found, in colours that everyone tells apart.

Blue, orange and light grey are told apart with every common colour blindness, and none of them is found in a fundus
photograph or an angiogram. The review page has the same three.
"""
from __future__ import annotations

from typing import Sequence

import cv2
import numpy as np

from .counts import check_masks

# RGB. All three are bright, because they lie on a darkened grey image.
BLUE, ORANGE, GREY = (0, 190, 255), (255, 140, 0), (225, 225, 225)
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = GREY, ORANGE, BLUE
LEGEND = (('TP found', TRUE_POSITIVE), ('FP extra', FALSE_POSITIVE), ('FN missed', FALSE_NEGATIVE))
FOUND = BLUE
# Of what stayed as it was, beside what changed.
FAINT = (120, 120, 120)

_SMALLEST_SIDE = 320
Colour = tuple[int, int, int]


def overlay(image: np.ndarray, pred: np.ndarray, target: np.ndarray, *, caption: str = '',
            max_side: int = 1600) -> np.ndarray:
    """A prediction held against its ground truth: true positives light grey, false positives orange, false negatives
    blue, on the image in dark grey, with a legend.

    Pictures larger than ``max_side`` are area-averaged, so thin errors fade instead of vanishing; small ones are
    enlarged by a whole factor, so that the legend fits.

    Args:
        image: uint8 [H, W, 3] RGB or [H, W] grey; resized to the masks where its size differs.
        pred, target: bool [h, w].
        caption: short ASCII text at the right end of the legend.
        max_side: of the picture without the legend, in pixels.

    Returns:
        uint8 [h' + legend, w', 3] RGB.

    Raises:
        ValueError: not an 8-bit image, or not bool masks of one shape.
    """
    return with_legend(fitted(difference(image, pred, target), max_side), LEGEND, caption)


def prediction_overlay(image: np.ndarray, pred: np.ndarray, *, caption: str = '', max_side: int = 1600) -> np.ndarray:
    """A prediction without ground truth: what was found blue, on the image in grey, with a legend.

    Arguments, result and errors as those of :func:`overlay`. The image shows through, so that one can judge the mask.
    """
    picture = painted(image, ((pred, FOUND),), gain=0.85, opacity=0.6)
    return with_legend(fitted(picture, max_side), (('vessel', FOUND),), caption)


def difference(image: np.ndarray, pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """:func:`overlay` at the size of the masks and without a legend: uint8 [h, w, 3] RGB."""
    return painted(image, tuple(zip(apart(pred, target), (TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE))))


def apart(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In both masks, in the first only, in the second only; of a prediction and its ground truth: what was found, what
    is extra, what was missed. Bool [h, w] each.

    Raises:
        ValueError: not bool masks of one shape.
    """
    check_masks(first, second)
    return first & second, first & ~second, second & ~first


def changes(before: np.ndarray, after: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of two predictions of an image: what is right now and was wrong, what is wrong now and was right, what is
    predicted as before. Bool [h, w] each.

    Raises:
        ValueError: not bool masks of one shape.
    """
    check_masks(before, after, target)
    changed, right = before != after, after == target
    return changed & right, changed & ~right, ~changed & after


def painted(image: np.ndarray, regions: Sequence[tuple[np.ndarray, Colour]], *, gain: float = 0.45,
            opacity: float = 0.9) -> np.ndarray:
    """The image in dark grey with regions in colours on it.

    The image loses its colours because fundus photographs are as orange as an error.

    Args:
        image: uint8 [H, W, 3] RGB or [H, W] grey; resized to the regions where its size differs.
        regions: bool [h, w] and its RGB colour; a later one lies on an earlier one.
        gain: of the image's brightness.
        opacity: of the colours, 0 to 1.

    Returns:
        uint8 [h, w, 3] RGB.

    Raises:
        ValueError: not an 8-bit image, or not bool masks of one shape.
    """
    check_masks(*(region for region, _ in regions))
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f'image must be uint8 [H, W, 3] or [H, W], not {image.dtype} {image.shape}')
    height, width = regions[0][0].shape
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    picture = np.repeat((grey * gain).astype(np.uint8)[..., None], 3, axis=2)
    for region, colour in regions:
        picture[region] = ((1 - opacity) * picture[region] + opacity * np.array(colour)).astype(np.uint8)
    return picture


def fitted(picture: np.ndarray, max_side: int) -> np.ndarray:
    """A picture [H, W, 3] within ``max_side`` pixels, or enlarged by a whole factor so that a legend fits below."""
    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest > max_side:
        size = (max(1, round(width * max_side / longest)), max(1, round(height * max_side / longest)))
        return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if width < _SMALLEST_SIDE:
        factor = -(-_SMALLEST_SIDE // width)
        if longest * factor <= max_side:
            return picture.repeat(factor, 0).repeat(factor, 1)
    return picture


def with_legend(picture: np.ndarray, legend: Sequence[tuple[str, Colour]], caption: str = '') -> np.ndarray:
    """A picture (uint8 [H, W, 3]) with a black strip below it that names colours, ``caption`` at its right end."""
    return np.concatenate([picture, _legend(picture.shape[1], legend, caption)])


def _legend(width: int, legend: Sequence[tuple[str, Colour]], caption: str) -> np.ndarray:
    """A black strip with the colours named; the text shrinks to the width that there is."""
    texts = [text for text, _ in legend] + ([caption] if caption else [])
    font, unit = cv2.FONT_HERSHEY_SIMPLEX, 22  # a glyph at scale 1 is 22 pixels high

    def needed(scale: float) -> float:
        return sum(cv2.getTextSize(text, font, scale, 1)[0][0] + 2.5 * unit * scale for text in texts)

    scale = min(1.2, width / needed(1.0), max(0.45, width / 1400))
    em = unit * scale
    strip = np.zeros((max(8, round(2 * em)), width, 3), np.uint8)
    baseline, x = round(1.4 * em), 0.5 * em
    thickness = 2 if scale > 0.9 else 1
    for text, colour in legend:
        cv2.rectangle(strip, (round(x), round(0.5 * em)), (round(x + em), baseline), colour, -1)
        cv2.putText(strip, text, (round(x + 1.4 * em), baseline), font, scale, (255, 255, 255), thickness, cv2.LINE_AA)
        x += cv2.getTextSize(text, font, scale, thickness)[0][0] + 2.4 * em
    if caption:
        length = cv2.getTextSize(caption, font, scale, thickness)[0][0]
        cv2.putText(strip, caption, (round(width - length - 0.5 * em), baseline), font, scale, (255, 255, 255),
                    thickness, cv2.LINE_AA)
    return strip
