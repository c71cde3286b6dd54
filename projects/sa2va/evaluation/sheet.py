"""Pictures on paper: images, masks and what changed, row by row, with the colours named once."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .counts import check_masks, confusion_counts, dice
from .overlay import BLUE, FAINT, GREY, ORANGE, Colour, apart, changes, difference, painted
from .scores import within

TILE, GAP, LINE = 320, 4, 20
Title = tuple[str, tuple[tuple[str, Colour], ...]]  # of a column: text, and the names of its colours
_WRONG = (('found', GREY), ('extra', ORANGE), ('missed', BLUE))
_CHANGED = (('gained', BLUE), ('lost', ORANGE), ('as before', FAINT))


@dataclass(frozen=True)
class Case:
    """One image of a test.

    Attributes:
        name: of the image.
        image: uint8 [H, W, 3] RGB.
        truth, after, before: bool [H, W]; ``before`` may be missing.
        field_of_view: bool [H, W], True inside: outside nothing is scored or drawn.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    after: np.ndarray
    before: np.ndarray | None = None
    field_of_view: np.ndarray | None = None

    def dice(self, mask: np.ndarray) -> float:
        """Dice of ``before`` or ``after``, inside the field of view."""
        return dice(confusion_counts(*within(mask, self.truth, self.field_of_view)))


def spread(values: Sequence[float], count: int) -> list[int]:
    """Indices of ``count`` values from the lowest to the highest: the worst, the best, and evenly between them (of
    three the median)."""
    order = np.argsort(values, kind='stable')
    count = min(count, len(order))
    return [int(order[round(k * (len(order) - 1) / max(1, count - 1))]) for k in range(count)]


def case_sheet(cases: Sequence[Case]) -> np.ndarray:
    """Image, ground truth, prediction and, where every case has one, the prediction before, and what changed.

    Predictions are drawn as in :func:`sa2va_dpo.evaluation.overlay.overlay`. In the last column pixels that were wrong
    and are right now are blue, those that were right and are wrong now orange.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        ValueError: no cases, or masks of one case that differ in size.
    """
    with_before = all(case.before is not None for case in cases)
    titles: list[Title] = [('image', ()), ('ground truth', ())]
    titles += [('before', _WRONG), ('after', _WRONG), ('change', _CHANGED)] if with_before else [('prediction', _WRONG)]
    return _sheet(titles, [_row(case, case.before if with_before else None) for case in cases])


def _row(case: Case, before: np.ndarray | None) -> list[tuple[np.ndarray, str]]:
    inside = np.ones_like(case.truth) if case.field_of_view is None else case.field_of_view
    check_masks(case.truth, case.after, inside)

    def scored(mask: np.ndarray) -> tuple[np.ndarray, str]:
        return difference(case.image, mask & inside, case.truth & inside), f'Dice {case.dice(mask):.3f}'

    row = [(case.image, case.name), (case.truth, '')]
    if before is None:
        return [*row, scored(case.after)]
    regions = tuple((region & inside, colour) for region, colour in zip(
        changes(before, case.after, case.truth), (BLUE, ORANGE, FAINT)))
    gain = case.dice(case.after) - case.dice(before)
    return [*row, scored(before), scored(case.after), (painted(case.image, regions), f'Dice {gain:+.3f}')]


def pair_sheet(pairs: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray, str, str]]) -> np.ndarray:
    """Preference pairs: image, chosen, rejected, and where they differ.

    Args:
        pairs: (name, image uint8 [H, W, 3], chosen and rejected bool [H, W], what stands below each of the two).

    Returns:
        uint8 [H, W, 3] RGB.
    """
    titles: list[Title] = [('image', ()), ('chosen', ()), ('rejected', ()),
                           ('difference', (('both', GREY), ('chosen only', BLUE), ('rejected only', ORANGE)))]
    rows = []
    for name, image, chosen, rejected, first, second in pairs:
        regions = tuple(zip(apart(chosen, rejected), (GREY, BLUE, ORANGE)))
        rows.append([(image, name), (chosen, first), (rejected, second), (painted(image, regions), '')])
    return _sheet(titles, rows)


def _sheet(titles: Sequence[Title], rows: Sequence[Sequence[tuple[np.ndarray, str]]]) -> np.ndarray:
    """Titles with their colours, then rows of pictures (uint8 RGB, or bool masks) with a line of text below each."""
    if not rows:
        raise ValueError('there is nothing to draw')
    shapes = [[picture.shape[:2] for picture, _ in row] for row in rows]
    heights = [max(round(TILE * h / max(h, w)) for h, w in row) for row in shapes]
    width = len(titles) * (TILE + GAP) + GAP
    sheet = Image.new('RGB', (width, 2 * LINE + GAP + sum(height + LINE + GAP for height in heights)), 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, (title, legend) in enumerate(titles):
        left = GAP + column * (TILE + GAP)
        draw.text((left, 2), title, fill='black', font=font)
        x = float(left)
        for text, colour in legend:
            draw.rectangle((x, LINE + 4, x + 11, LINE + 15), fill=colour, outline=(60, 60, 60))
            draw.text((x + 16, LINE + 2), text, fill='black', font=font)
            x += 28 + draw.textlength(text, font=font)
    top = 2 * LINE
    for row, height in zip(rows, heights):
        for column, (picture, text) in enumerate(row):
            left = GAP + column * (TILE + GAP)
            small = _small(picture)
            sheet.paste(small, (left + (TILE - small.width) // 2, top + (height - small.height) // 2))
            draw.text((left, top + height + 2), _fitting(draw, font, text), fill='black', font=font)
        top += height + LINE + GAP
    return np.asarray(sheet)


def _small(picture: np.ndarray) -> Image.Image:
    """Within a tile; area-averaged, so that thin vessels fade instead of vanishing."""
    if picture.dtype == np.bool_:
        picture = np.repeat(picture.astype(np.uint8)[..., None] * 255, 3, axis=2)
    height, width = picture.shape[:2]
    factor = TILE / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    return Image.fromarray(cv2.resize(picture, size, interpolation=method))


def _fitting(draw: ImageDraw.ImageDraw, font, text: str) -> str:
    """The text, its middle left out where it is longer than a tile."""
    while draw.textlength(text, font=font) > TILE and len(text) > 8:
        middle = len(text) // 2
        text = text[:middle - 3] + '...' + text[middle + 3:]
    return text
