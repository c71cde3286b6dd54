"""Images and masks on disk: every format of the field in, PNG out."""
from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import write_bytes

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp', '.gif', '.ppm', '.pgm')


def natural_key(path: Path) -> list:
    """Sorts ``image_2`` before ``image_10``, whatever the case; ties by the exact name."""
    parts = re.split(r'(\d+)', path.name.casefold())
    return [[int(part) if part.isdecimal() else 0, part] for part in parts] + [[0, path.name]]


def list_images(directory: str | os.PathLike) -> list[Path]:
    """Image files of a folder (not of its sub-folders), in natural order; hidden files are left out.

    Raises:
        InputError: no such folder, or it holds no image.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f'{directory}: no such folder: give a folder of images')
    images = [path for path in directory.iterdir()
              if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.') and path.is_file()]
    if not images:
        raise InputError(f'{directory}: holds no image: the formats are {", ".join(s[1:] for s in IMAGE_SUFFIXES)}')
    return sorted(images, key=natural_key)


def _open(path: str | os.PathLike) -> Image.Image:
    """The first frame, decoded whole; raises InputError naming the file."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except FileNotFoundError:
        raise InputError(f'{path}: no such file: check the path') from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f'{path}: cannot be read as an image ({error}): is the file complete?') from None


def read_image_rgb(path: str | os.PathLike) -> np.ndarray:
    """uint8 [H, W, 3]; 16-bit grey images are scaled to their own range.

    Raises:
        InputError: missing, truncated or no image.
    """
    image = _open(path)
    if image.mode.startswith(('I', 'F')):
        grey = np.asarray(image, np.float64)
        low, high = grey.min(), grey.max()
        image = Image.fromarray(np.rint((grey - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))
    return np.asarray(image.convert('RGB'))


def read_probability(path: str | os.PathLike) -> np.ndarray:
    """Grey levels (probability maps, masks) as float32 [H, W] in [0, 1].

    A file whose largest level is 1 is a 0/1 mask; 16-bit files are divided by 65535, all others by 255.

    Raises:
        InputError: missing, truncated or no image.
    """
    image = _open(path)
    if image.mode == '1':
        return np.asarray(image, np.float32)
    wide = image.mode.startswith(('I', 'F'))
    grey = np.asarray(image if wide else image.convert('RGB').convert('L') if image.mode == 'P' else image.convert('L'),
                      np.float32)
    if image.mode == 'P':
        # A palette image may store class indices with arbitrary colours: two indices are a mask whatever the colours.
        index = np.asarray(image)
        if index.max() <= 1:
            grey = index.astype(np.float32)
    top = grey.max()
    if top <= 1:
        return grey
    return grey / (65535.0 if top > 255 else 255.0)


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """bool [H, W]: grey level above one half of the range (0/1, 0/255 and 16-bit files alike).

    Raises:
        InputError: missing, truncated or no image.
    """
    return read_probability(path) > 0.5


def is_binary(grey: np.ndarray) -> bool:
    """Whether grey levels are those of a mask: nearly all at the ends of the range (JPEG rings a little)."""
    return bool(((grey < 0.06) | (grey > 0.94)).mean() > 0.99)


def write_mask(path: str | os.PathLike, mask: np.ndarray) -> None:
    """Write a bool [H, W] mask as 8-bit PNG, 0 and 255; the file appears whole or not at all."""
    # OpenCV encodes without holding the interpreter lock, so a pool of writers runs in parallel.
    _, content = cv2.imencode('.png', mask.astype(np.uint8) * 255)
    write_bytes(path, content.tobytes())
