"""COCO instance annotations -> one ground-truth mask per image: ``scripts/coco_to_masks.py``."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .mask_io import write_mask
from .outlines import Coco


def read_coco(path: str | os.PathLike, categories: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """The vessel mask of every image.

    All annotations of an image are joined (a pixel is vessel or not, however many instances overlap there).

    Args:
        path: COCO JSON with ``images``, ``annotations`` and, for ``categories``, ``categories``.
        categories: names to keep; ``None`` keeps all.

    Returns:
        file name -> bool [H, W], in the file's order; images without annotations are empty masks.

    Raises:
        InputError: not COCO JSON, or an annotation is bad; names the file, the annotation and the field.
    """
    content = Coco(Path(path), categories=categories)
    return {name: content.mask(stem) for stem, name in content.names.items()}


def coco_to_masks(
    path: str | os.PathLike, out_dir: str | os.PathLike, categories: tuple[str, ...] | None = None
) -> list[Path]:
    """Write ``<stem>.png`` (0 and 255) for every image of a COCO file; ``out_dir`` then serves as ``--gt_dir``.

    Raises:
        InputError: see :func:`read_coco`; or two images share a stem.
    """
    masks = {Path(name).stem: mask for name, mask in read_coco(path, categories).items()}
    for stem, mask in masks.items():
        write_mask(Path(out_dir) / f'{stem}.png', mask)
    return [Path(out_dir) / f'{stem}.png' for stem in masks]

