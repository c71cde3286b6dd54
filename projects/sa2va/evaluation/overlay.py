"""Where a prediction is right and wrong, drawn on the image."""
from __future__ import annotations

import cv2
import numpy as np

from .counts import check_masks

# RGB. All three are bright, because they lie on a darkened grey image; plain blue would be lost on it.
TRUE_POSITIVE = (0, 220, 60)
FALSE_POSITIVE = (255, 50, 50)
FALSE_NEGATIVE = (70, 140, 255)
LEGEND = (('TP found', TRUE_POSITIVE), ('FP extra', FALSE_POSITIVE), ('FN missed', FALSE_NEGATIVE))

_BACKGROUND_GAIN = 0.55
_OPACITY = 0.85
_SMALLEST_SIDE = 320


def overlay(image: np.ndarray, pred: np.ndarray, target: np.ndarray, *, caption: str = '',
            max_side: int = 1600) -> np.ndarray:
    """The image in dark grey with true positives green, false positives red, false negatives blue, and a legend.

    The image loses its colours because fundus photographs are red and angiograms grey: on neither could one tell
    a false positive from the background otherwise. Pictures larger than ``max_side`` are area-averaged, so thin
    errors fade instead of vanishing; small ones are enlarged by a whole factor, so that the legend fits.

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
    check_masks(pred, target)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f'image must be uint8 [H, W, 3] or [H, W], not {image.dtype} {image.shape}')
    height, width = pred.shape
    if image.shape[:2] != pred.shape:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    picture = np.repeat((grey * _BACKGROUND_GAIN).astype(np.uint8)[..., None], 3, axis=2)
    for region, colour in ((pred & target, TRUE_POSITIVE), (pred & ~target, FALSE_POSITIVE),
                           (~pred & target, FALSE_NEGATIVE)):
        picture[region] = ((1 - _OPACITY) * picture[region] + _OPACITY * np.array(colour)).astype(np.uint8)

    longest = max(height, width)
    if longest > max_side:
        size = (max(1, round(width * max_side / longest)), max(1, round(height * max_side / longest)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    elif width < _SMALLEST_SIDE:
        factor = -(-_SMALLEST_SIDE // width)
        if longest * factor <= max_side:
            picture = picture.repeat(factor, 0).repeat(factor, 1)
    return np.concatenate([picture, _legend(picture.shape[1], caption)])


def _legend(width: int, caption: str) -> np.ndarray:
    """A black strip with the three colours named; the text shrinks to the width that there is."""
    texts = [text for text, _ in LEGEND] + ([caption] if caption else [])
    font, unit = cv2.FONT_HERSHEY_SIMPLEX, 22  # a glyph at scale 1 is 22 pixels high

    def needed(scale: float) -> float:
        return sum(cv2.getTextSize(text, font, scale, 1)[0][0] + 2.5 * unit * scale for text in texts)

    scale = min(1.2, width / needed(1.0), max(0.45, width / 1400))
    em = unit * scale
    strip = np.zeros((max(8, round(2 * em)), width, 3), np.uint8)
    baseline, x = round(1.4 * em), 0.5 * em
    thickness = 2 if scale > 0.9 else 1
    for text, colour in LEGEND:
        cv2.rectangle(strip, (round(x), round(0.5 * em)), (round(x + em), baseline), colour, -1)
        cv2.putText(strip, text, (round(x + 1.4 * em), baseline), font, scale, (255, 255, 255), thickness, cv2.LINE_AA)
        x += cv2.getTextSize(text, font, scale, thickness)[0][0] + 2.4 * em
    if caption:
        length = cv2.getTextSize(caption, font, scale, thickness)[0][0]
        cv2.putText(strip, caption, (round(width - length - 0.5 * em), baseline), font, scale, (255, 255, 255),
                    thickness, cv2.LINE_AA)
    return strip
