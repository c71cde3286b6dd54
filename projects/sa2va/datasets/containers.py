"""Files that hold several pictures or masks, seen as folders of them.

A DICOM or NIfTI file ``run.dcm`` is a folder of its frames: ``run.dcm/run_0001.png``, ... or, where it has one frame,
``run.dcm/run.png``. So is a TIFF or GIF file of several pages (``run.tif/run_0002.png``); one of one page is a plain
picture. A JSON file of outlines (COCO, or upstream's ``annotations.json``) is a folder of its masks:
``train.json/<stem of the image>.png``. Such a path is a path like any other for those who list, match, read, hash and
copy through this room; no file of that name exists.
"""
from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.limits import limit, variable_of

from . import medical, outlines, pages

_VOLUMES = ('.dcm', '.dicom', '.nii', '.nii.gz')


def is_volume(path: Path) -> bool:
    """Whether a file is DICOM or NIfTI (by its name or, for names without a suffix or with a number as one, as DICOM
    files often have, by its first bytes), or TIFF or GIF of several pages."""
    name = path.name.lower()
    if name.endswith(_VOLUMES) or is_paged(path):
        return True
    return bool(re.fullmatch(r'|\.\d+', path.suffix)) and name != 'dicomdir' and medical.has_dicom_mark(path)


def is_paged(path: Path) -> bool:
    """Whether a file is TIFF or GIF with more than one page, or with damage that leaves this open."""
    try:
        return len(pages.pages(path)) > 1
    except InputError:
        return True  # whoever lists it says so


def container_of(path: Path) -> Path | None:
    """The file in which a picture lies, ``None`` for one that is a file of its own."""
    parent = Path(path).parent
    return parent if parent.is_file() else None


def entries(container: Path) -> list[Path]:
    """The pictures of a file, in its order.

    Raises:
        InputError: it cannot be read, a library is missing, or it holds more frames than the limit.
    """
    container = Path(container)
    if not is_volume(container):
        return [container / f'{stem}.png' for stem in outlines.read(container).stems]
    count = len(pages.pages(container)) if is_paged(container) else _reader(container).count(container)
    stem = _stem(container)
    if count > limit('frames'):
        raise InputError(
            f'{container}: holds {count} frames, the limit is {limit("frames")}: split it, or raise '
            f'{variable_of("frames")}'
        )
    return (
        [container / f'{stem}.png'] if count == 1 else [container / f'{stem}_{k:04d}.png' for k in range(1, count + 1)]
    )


def read(path: Path) -> np.ndarray:
    """One picture of a container, but of pages (``datasets/mask_io.py`` opens them): uint8 [H, W] or [H, W, 3], or
    [H, W] of the file's own numbers; masks of outlines bool."""
    container = Path(path).parent
    if not is_volume(container):
        return outlines.read(container).mask(path.stem)
    return _reader(container).frame(container, index(path))


def size(path: Path) -> tuple[int, int]:
    """(width, height) of one picture, without decoding it."""
    container = Path(path).parent
    if is_paged(container):
        with pages.opened(container, index(path)) as image:
            return image.size
    return _reader(container).size(container) if is_volume(container) else outlines.read(container).size(path.stem)


def _reader(container: Path) -> type[medical.Dicom] | type[medical.Nifti]:
    return medical.Nifti if container.name.lower().endswith(('.nii', '.nii.gz')) else medical.Dicom


def _stem(container: Path) -> str:
    name = container.name
    for suffix in _VOLUMES[::-1]:
        if name.lower().endswith(suffix):
            return name[:-len(suffix)]
    return container.stem if is_paged(container) else name


def index(path: Path) -> int:
    """Which frame or page a path means, from 0."""
    known = _positions(str(path.parent), path.parent.stat().st_mtime_ns)
    if path.name not in known:
        raise InputError(f'{path.parent}: has no frame {path.name}: the file was changed meanwhile')
    return known[path.name]


@lru_cache(maxsize=64)
def _positions(container: str, _changed: int) -> dict[str, int]:
    return {path.name: k for k, path in enumerate(entries(Path(container)))}
