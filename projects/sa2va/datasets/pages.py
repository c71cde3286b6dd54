"""What Pillow reads, opened with our limits and our errors; files of several pages (TIFF) or frames (GIF).

Reduced copies and transparency masks that scanners put beside a picture into a TIFF are no pages.
"""
from __future__ import annotations

import os
import warnings
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.limits import check_pixels, limit

from .names import printable

SUFFIXES = ('.tif', '.tiff', '.gif')
UNREADABLE = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
    OverflowError,
    MemoryError,
)
_SUBFILE_TYPE, _REDUCED, _TRANSPARENCY = 254, 1, 4  # TIFF 6.0, page 36
# Our own limit is checked before anything is decoded; Pillow's stays as a second one for whoever opens a file without
# us.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)


def opened(path: str | os.PathLike, page: int | None = None) -> Image.Image:
    """A file whose header is read and whose size is within the limit.

    Args:
        page: which of :func:`pages`; None is the first picture, whatever else is there.

    Raises:
        InputError: missing, no image, or larger than the limit (``common/limits.py``).
    """
    Image.MAX_IMAGE_PIXELS = limit('image_pixels')
    try:
        image = Image.open(path)
    except FileNotFoundError:
        raise InputError(f'{printable(path)}: no such file: check the path') from None
    except Image.DecompressionBombError:
        raise InputError(
            f'{printable(path)}: has more than twice the limit of {limit("image_pixels")} pixels: make it smaller, or '
            'raise SA2VA_DPO_MAX_IMAGE_PIXELS'
        ) from None
    except UNREADABLE as error:
        raise unreadable(path, error) from None
    try:
        if page is not None:
            image.seek(pages(Path(path))[page])
        check_pixels(printable(path), *image.size)
    except (EOFError, *UNREADABLE) as error:
        image.close()
        raise unreadable(path, error) from None
    except InputError:
        image.close()
        raise
    return image


def unreadable(path: str | os.PathLike, error: Exception) -> InputError:
    return InputError(f'{printable(path)}: cannot be read as an image ({printable(error)}): is the file complete?')


def pages(path: Path) -> tuple[int, ...]:
    """Where Pillow finds the pages of a file; of one that cannot be opened, or has one page, ``(0,)``.

    Raises:
        InputError: it is damaged behind the first page.
    """
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return (0,)
    status = path.stat()
    return _pages(os.path.realpath(path), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4096)
def _pages(path: str, _changed: int, _size: int) -> tuple[int, ...]:
    try:
        image = Image.open(path)
    except (FileNotFoundError, *UNREADABLE):
        return (0,)  # whoever reads it says so
    with image:
        try:
            found = []
            for number in range(getattr(image, 'n_frames', 1)):
                image.seek(number)
                kind = image.tag_v2.get(_SUBFILE_TYPE, 0) if hasattr(image, 'tag_v2') else 0
                if not kind & (_REDUCED | _TRANSPARENCY):
                    found.append(number)
        except (EOFError, *UNREADABLE) as error:
            raise unreadable(path, error) from None
    return tuple(found) or (0,)
