"""One validation image as a row of pictures: what was seen, what is right, what was predicted, what is wrong with it,
and what became of the prediction since the start."""
from __future__ import annotations

import cv2
import numpy as np

from .counts import check_masks, confusion_counts, dice
from .overlay import BLUE, FAINT, GREY, LEGEND, ORANGE, changes, difference, fitted, painted, with_legend

# Longest side of one picture in pixels.
PANEL_SIDE = 480
_GAP = 6


def panels(image: np.ndarray, pred: np.ndarray, target: np.ndarray, start: np.ndarray | None = None,
           field: np.ndarray | None = None, max_side: int = PANEL_SIDE) -> np.ndarray:
    """Image | ground truth | prediction | difference, and where ``start`` is given | change since the start.

    In the difference light grey is found, orange extra, blue missed; in the change blue is right now and was wrong,
    orange the other way round, faint grey predicted as before.

    Args:
        image: uint8 [H, W, 3] RGB or [H, W] grey; resized to the masks where its size differs.
        pred, target, start: bool [h, w]; ``start`` is what was predicted before the first step.
        field: bool [h, w], True where pixels are scored; nothing is drawn elsewhere.
        max_side: of one picture, in pixels.

    Returns:
        uint8 [h', w', 3] RGB: the pictures beside each other, a legend below each.

    Raises:
        ValueError: not an 8-bit image, or not bool masks of one shape.
    """
    check_masks(pred, target, *(mask for mask in (start, field) if mask is not None))
    if field is not None:
        pred, target, start = pred & field, target & field, None if start is None else start & field
    size = pred.shape[1], pred.shape[0]
    photograph = image if image.shape[:2] == pred.shape else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if photograph.ndim == 2:
        photograph = np.repeat(photograph[..., None], 3, axis=2)
    found = [
        (photograph, (), 'image'),
        (painted(image, ((target, GREY),)), (('ground truth', GREY),), ''),
        (painted(image, ((pred, GREY),)), (('prediction', GREY),), ''),
        (difference(image, pred, target), LEGEND, f'Dice {dice(confusion_counts(pred, target)):.3f}'),
    ]
    if start is not None:
        regions = zip(changes(start, pred, target), (BLUE, ORANGE, FAINT))
        found.append((painted(image, tuple(regions)), (('right since start', BLUE), ('wrong since', ORANGE),
                                                  ('as before', FAINT)), ''))
    pictures = [with_legend(fitted(picture, max_side), legend, caption) for picture, legend, caption in found]
    height = max(len(picture) for picture in pictures)
    row: list[np.ndarray] = []
    for picture in pictures:
        # Legends differ in height, gaps keep the pictures apart.
        row += [np.pad(picture, ((0, height - len(picture)), (0, 0), (0, 0))),
                np.full((height, _GAP, 3), 255, np.uint8)]
    return np.concatenate(row[:-1], axis=1)
