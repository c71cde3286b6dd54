"""The four pictures of a pair, at full resolution."""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from sa2va_dpo.datasets.annotations import PairRecord, resolve
from sa2va_dpo.datasets.mask_io import read_image_rgb, read_mask
from sa2va_dpo.common.errors import InputError

# RGB. Told apart with every common colour blindness, and neither is found in a fundus photograph or an angiogram.
ONLY_CHOSEN = (0, 200, 255)
ONLY_REJECTED = (255, 120, 0)
BOTH = (235, 235, 235)
_GAIN = 0.45


def difference(image: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """The image in dark grey with the masks on it: both white, chosen only blue, rejected only orange.

    Args:
        image: uint8 [H, W, 3] RGB.
        chosen, rejected: bool [H, W].

    Returns:
        uint8 [H, W, 3] RGB.
    """
    grey = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) * _GAIN).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, axis=2)
    for region, colour in ((chosen & rejected, BOTH), (chosen & ~rejected, ONLY_CHOSEN), (~chosen & rejected, ONLY_REJECTED)):
        picture[region] = colour
    return picture


def load(data_root: Path, record: PairRecord) -> dict[str, np.ndarray]:
    """``image`` uint8 [H, W, 3], ``chosen`` and ``rejected`` bool [H, W]; files outside the data root are refused.

    Raises:
        InputError: a file that cannot be read, or masks of another size than the image.
    """
    image = read_image_rgb(resolve(data_root, record.image))
    found = dict(image=image)
    for side, name in (('chosen', record.chosen_mask), ('rejected', record.rejected_mask)):
        found[side] = read_mask(resolve(data_root, name))
        if found[side].shape != image.shape[:2]:
            raise InputError(f'{name}: is {found[side].shape[1]} x {found[side].shape[0]} pixels, {record.image} is '
                             f'{image.shape[1]} x {image.shape[0]}: a mask must have the size of its image')
    return found


def encode(picture: np.ndarray) -> bytes:
    """PNG, without loss, of uint8 [H, W, 3] RGB or bool [H, W]."""
    content = picture.astype(np.uint8) * 255 if picture.dtype == bool else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode('.png', content, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
