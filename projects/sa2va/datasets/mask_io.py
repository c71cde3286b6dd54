"""Images and masks on disk: every format of the field in, PNG out."""
from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import write_bytes

from . import containers, pages
from .medical import stretch
from .names import is_utf8, printable

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp', '.gif', '.ppm', '.pgm')
# A mask whose largest level is this or less, and that has more than two, numbers classes.
_MOST_CLASSES = 32


def natural_key(path: Path) -> list:
    """Sorts ``image_2`` before ``image_10``, whatever the case; ties by the exact name."""
    parts = re.split(r'(\d+)', path.name.casefold())
    return [[int(part) if part.isdecimal() else 0, part] for part in parts] + [[0, path.name]]


def list_images(directory: str | os.PathLike) -> list[Path]:
    """Images of a folder (not of its sub-folders), in natural order; hidden files are left out.

    The frames of DICOM and NIfTI files and the pages of TIFF and GIF files are images of their own
    (``datasets/containers.py``).

    Raises:
        InputError: no such folder, it holds no image, or the name of one is not UTF-8.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f'{printable(directory)}: no such folder: give a folder of images')
    images: list[Path] = []
    for path in directory.iterdir():
        if path.name.startswith('.') or not path.is_file():
            continue
        volume = containers.is_volume(path)
        if not (volume or path.suffix.lower() in IMAGE_SUFFIXES):
            continue
        if not is_utf8(path.name):
            raise InputError(f'{printable(path)}: the name is not UTF-8, annotations cannot name it: rename it '
                             '(convmv -f latin1 -t utf8)')
        images += containers.entries(path) if volume else [path]
    if not images:
        raise InputError(
            f'{directory}: holds no image: the formats are {", ".join(s[1:] for s in IMAGE_SUFFIXES)}, DICOM and NIfTI'
        )
    return sorted(images, key=natural_key)


def _open(path: str | os.PathLike) -> Image.Image:
    """The one picture of a file, decoded whole; raises InputError naming the file."""
    path = _whole(Path(path))
    container = containers.container_of(path)
    if container is None:
        return _loaded(path)
    if containers.is_paged(container):
        return _loaded(container, containers.index(path))
    return _picture(containers.read(path))


def _whole(path: Path) -> Path:
    """The one picture of a DICOM, NIfTI or paged file; any other path as it is.

    Raises:
        InputError: there are several, of which none may be taken unasked.
    """
    if containers.container_of(path) is not None or not (containers.is_volume(path) and path.is_file()):
        return path
    frames = containers.entries(path)
    if len(frames) != 1:
        raise InputError(f'{printable(path)}: holds {len(frames)} pictures where one is meant: save the one that is '
                         f'meant as a file of its own, or give the folder for all of them')
    return frames[0]


def _loaded(path: str | os.PathLike, page: int | None = None) -> Image.Image:
    with pages.opened(path, page) as image:
        try:
            image.load()
            return image.copy()
        except pages.UNREADABLE as error:
            raise pages.unreadable(path, error) from None


def _picture(values: np.ndarray) -> Image.Image:
    """What a container holds, in the modes that Pillow gives plain files."""
    if values.dtype == np.bool_:
        return Image.fromarray(values.astype(np.uint8))
    if values.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(values))
    if values.dtype.kind in 'iu' and np.abs(values.astype(np.int64)).max() < 1 << 31:
        return Image.fromarray(values.astype(np.int32))
    return Image.fromarray(values.astype(np.float32))


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) from the header.

    Raises:
        InputError: missing, no image, several pages or frames, or larger than the limit (``common/limits.py``).
    """
    path = _whole(Path(path))
    if containers.container_of(path) is not None:
        return containers.size(path)
    with pages.opened(path) as image:
        return image.size


def read_image_rgb(path: str | os.PathLike) -> np.ndarray:
    """uint8 [H, W, 3]; 16-bit grey images are scaled to their own range, DICOM is windowed.

    Raises:
        InputError: missing, truncated, no image, several pages or frames, or larger than the limit.
    """
    image = _open(path)
    if image.mode.startswith(('I', 'F')):
        image = Image.fromarray(stretch(np.asarray(image, np.float64)))
    return np.asarray(image.convert('RGB'))


def _grey(path: str | os.PathLike) -> np.ndarray:
    """Grey levels as they are in the file: bool, uint8 or wider [H, W]."""
    image = _open(path)
    if image.mode == '1' or image.mode.startswith(('I', 'F')):
        return np.nan_to_num(np.asarray(image))
    if image.mode == 'P':
        # A palette image may store class indices with arbitrary colours: two indices are a mask whatever the colours.
        index = np.asarray(image)
        if index.max() <= 1:
            return index
        image = image.convert('RGB')
    return np.asarray(image.convert('L'))


def _scaled(grey: np.ndarray) -> np.ndarray:
    top = grey.max()
    if top <= 1:
        return grey.astype(np.float32)
    return grey.astype(np.float32) / (65535.0 if top > 255 else 255.0)


def read_probability(path: str | os.PathLike) -> np.ndarray:
    """Grey levels (probability maps, masks) as float32 [H, W] in [0, 1].

    A file whose largest level is 1 is a 0/1 mask; 16-bit files are divided by 65535, all others by 255.

    Raises:
        InputError: missing, truncated, no image, several pages or frames, or larger than the limit.
    """
    return _scaled(_grey(path))


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """bool [H, W]. Of two levels of which one is 0 the other is vessel; of more, those above one half of the range.

    Raises:
        InputError: missing, truncated, no image, several pages or frames, larger than the limit, or no mask: a
            picture, or numbered classes.
    """
    grey = _grey(path)
    if grey.dtype == np.bool_:
        return grey
    levels, counts = _levels(grey)
    scaled = _scaled(grey)
    if len(levels) == 2 and levels[0] == 0:
        return grey > 0
    if len(levels) <= 256 and levels[-1] <= _MOST_CLASSES and levels[-1] > 1 and (levels == np.rint(levels)).all():
        raise InputError(
            f'{printable(path)}: holds levels {", ".join(f"{level:g}" for level in levels[:6])}'
            f'{", ..." if len(levels) > 6 else ""}, which number classes: a mask has 0, and 255 where there is vessel'
        )
    if len(levels) == 2 and scaled.max() <= 0.5:
        raise InputError(
            f'{printable(path)}: holds levels {levels[0]:g} and {levels[1]:g}: which is vessel? Make it 255 and the '
            f'other 0'
        )
    inside = (scaled > 0.06) & (scaled < 0.94)
    if len(levels) > 2 and inside.mean() > 0.5:
        raise InputError(
            f'{printable(path)}: is no mask: {inside.mean():.0%} of its pixels are neither dark nor bright. Are images '
            'and masks exchanged?'
        )
    return scaled > 0.5


def _levels(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(levels, how many pixels have each)."""
    if grey.dtype == np.uint8:
        counts = np.bincount(grey.ravel(), minlength=256)
        return np.flatnonzero(counts), counts[counts > 0]
    return np.unique(grey, return_counts=True)


def mask_levels(path: str | os.PathLike) -> dict[float, int]:
    """Level -> number of pixels, for a report on a mask.

    Raises:
        InputError: missing, truncated, no image, several pages or frames, or larger than the limit.
    """
    grey = _grey(path)
    levels, counts = _levels(grey.astype(np.uint8) if grey.dtype == np.bool_ else grey)
    return dict(zip(levels.tolist(), counts.tolist()))


def is_binary(grey: np.ndarray) -> bool:
    """Whether grey levels are those of a mask: nearly all at the ends of the range (JPEG rings a little)."""
    return bool(((grey < 0.06) | (grey > 0.94)).mean() > 0.99)


def write_mask(path: str | os.PathLike, mask: np.ndarray) -> None:
    """Write a bool [H, W] mask as 8-bit PNG, 0 and 255; the file appears whole or not at all."""
    # OpenCV encodes without holding the interpreter lock, so a pool of writers runs in parallel.
    _, content = cv2.imencode('.png', mask.astype(np.uint8) * 255)
    write_bytes(path, content.tobytes())


def write_rgb(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write a uint8 [H, W, 3] image as PNG; the file appears whole or not at all."""
    _, content = cv2.imencode('.png', image[..., ::-1])
    write_bytes(path, content.tobytes())
