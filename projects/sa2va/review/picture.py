"""Images and masks as the page draws them, at full resolution."""
from __future__ import annotations

import gzip
from pathlib import Path

import cv2
import numpy as np

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import PairRecord, resolve
from sa2va_dpo.datasets.mask_io import read_image_rgb, read_mask
from sa2va_dpo.evaluation.overlay import BLUE, GREY, ORANGE, painted

# As in the page's style sheet.
ONLY_CHOSEN, ONLY_REJECTED, BOTH = BLUE, ORANGE, GREY
_THUMBNAIL = 240


def difference(image: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """The image in dark grey with the masks on it: both light grey, chosen only blue, rejected only orange.

    Args:
        image: uint8 [H, W, 3] RGB.
        chosen, rejected: bool [H, W].

    Returns:
        uint8 [H, W, 3] RGB.
    """
    return painted(image, ((chosen & rejected, BOTH), (chosen & ~rejected, ONLY_CHOSEN),
                           (~chosen & rejected, ONLY_REJECTED)), opacity=1)


def load(data_root: Path, record: PairRecord) -> dict[str, np.ndarray]:
    """``image`` uint8 [H, W, 3], ``chosen``, ``rejected`` and, where the record names one, ``gt`` bool [H, W]; files
    outside the data root are refused.

    Raises:
        InputError: a file that cannot be read, or masks of another size than the image.
    """
    image = read_image_rgb(resolve(data_root, record.image))
    found = dict(image=image)
    for side, name in (('chosen', record.chosen_mask), ('rejected', record.rejected_mask), ('gt', record.gt_mask)):
        if name is not None:
            found[side] = read_mask(resolve(data_root, name))
            check_size(name, found[side], record.image, image)
    return found


def check_size(name: str, mask: np.ndarray, image_name: str, image: np.ndarray) -> None:
    """Raises InputError unless the mask (bool [H, W]) has the size of the image (uint8 [H, W, 3])."""
    if mask.shape != image.shape[:2]:
        raise InputError(f'{name}: is {mask.shape[1]} x {mask.shape[0]} pixels, {image_name} is '
                         f'{image.shape[1]} x {image.shape[0]}: a mask must have the size of its image')


def encode_image(picture: np.ndarray) -> bytes:
    """PNG, without loss, of uint8 [H, W, 3] RGB."""
    content = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode('.png', content, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def encode_mask(mask: np.ndarray) -> bytes:
    """gzip of the pixels of bool [H, W], row after row, eight a byte, the first in the highest bit.

    Not a picture: some browsers add noise to the pixels that a page reads back from one.
    """
    return gzip.compress(np.packbits(mask).tobytes(), 1)


def encode_labels(labels: np.ndarray) -> bytes:
    """gzip of int32 [H, W], little-endian, row after row."""
    return gzip.compress(labels.astype('<i4').tobytes(), 1)


def thumbnail(picture: np.ndarray) -> bytes:
    """JPEG of uint8 [H, W, 3] RGB, at most 240 pixels a side."""
    factor = min(1.0, _THUMBNAIL / max(picture.shape[:2]))
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode('.jpg', cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
