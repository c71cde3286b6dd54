"""A contact sheet: images with the outlines of their masks, on one picture."""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.evaluation.overlay import BLUE, ORANGE

from .mask_io import read_image_rgb, read_mask, write_rgb
from .names import printable

TILE, COLUMNS, CAPTION = 240, 6, 18
_MASK, _FIELD, _NOTED = ORANGE, BLUE, ORANGE


def contact_sheet(items: Sequence[tuple[Path, Path, Path | None]], noted: set[Path], most: int = 24) -> np.ndarray:
    """Images beside the same with their masks' outlines (orange) and fields of view (blue).

    Args:
        items: image, mask and field of view (or ``None``).
        noted: images that come first, their captions marked.
        most: images on the sheet; the others are drawn evenly from the list.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    first = [item for item in items if item[0] in noted][:most]
    rest = [item for item in items if item[0] not in noted]
    count = min(most - len(first), len(rest))
    chosen = first + [rest[i] for i in np.linspace(0, len(rest) - 1, count).round().astype(int)] if count else first
    tiles = [_tile(*item, noted=item[0] in noted) for item in chosen]
    columns = min(COLUMNS // 2, len(tiles)) or 1
    blank = np.full((TILE + CAPTION, 2 * TILE, 3), 255, np.uint8)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i:i + columns], 1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows) if rows else blank


def write_contact_sheet(path: str | Path, items: Sequence[tuple[Path, Path, Path | None]], noted: set[Path]) -> None:
    """:func:`contact_sheet` as a PNG; raises InputError where the disk would not have it."""
    write_rgb(path, contact_sheet(items, noted))


def _tile(image: Path, mask: Path, field: Path | None, noted: bool) -> np.ndarray:
    tile = Image.new('RGB', (2 * TILE, TILE + CAPTION), 'white')
    try:
        pixels = read_image_rgb(image)
        tile.paste(_small(pixels), (0, CAPTION))
        # On grey: fundus photographs are as orange as the outlines.
        drawn = np.repeat((cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) * 0.7).astype(np.uint8)[..., None], 3, axis=2)
        width = max(1, round(max(pixels.shape[:2]) / TILE))
        for path, colour in ((field, _FIELD), (mask, _MASK)):
            if path is not None:
                outline, _ = cv2.findContours(read_mask(path).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
                cv2.drawContours(drawn, outline, -1, colour, width)
        tile.paste(_small(drawn), (TILE, CAPTION))
    except InputError:
        noted = True  # what is wrong stands in the list of findings
    draw = ImageDraw.Draw(tile)
    draw.text((4, 2), ('! ' if noted else '') + _fitting(printable(image.name)), fill=_NOTED if noted else (40, 40, 40),
              font=ImageFont.load_default(12))
    return np.asarray(tile)


def _small(pixels: np.ndarray) -> Image.Image:
    """Within a tile, its proportions kept, on white."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((TILE - 4, TILE - 4), Image.Resampling.BOX)
    ground = Image.new('RGB', (TILE, TILE), 'white')
    ground.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return ground


def _fitting(name: str, most: int = 60) -> str:
    return name if len(name) <= most else f'{name[:most - 12]}...{name[-9:]}'
