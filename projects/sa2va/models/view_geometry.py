"""How closely the policy looks: the tiles of an image, and their logits as one map again.

Pure geometry: no file, no model. ``models/tiled.py`` runs the policy over the tiles, ``datasets/samples.py`` cuts them.
"""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Mapping

import torch

from sa2va_dpo.common.errors import InputError

# Of each axis. SAM2 runs once a tile: 8 x 8 tiles cost 64 times what the whole image costs.
MOST = 8
BLENDS, CONTEXTS = ('hann', 'mean'), ('image', 'tile')
Span = tuple[int, int]  # first pixel, and the one after the last


@dataclass(frozen=True)
class Box:
    """A rectangle of an image, pixels; ``bottom`` and ``right`` are the first ones outside."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left

    def cut(self, array):
        """The part of an [H, W] or [H, W, ...] array; a view."""
        return array[self.top:self.bottom, self.left:self.right]


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one image: every row span with every column span.

    Attributes:
        size: (height, width) of the image.
        rows, columns: spans along the two axes; together they cover it.
        blend: see :class:`ViewGeometry`.
    """

    size: tuple[int, int]
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    blend: str

    @property
    def boxes(self) -> list[Box]:
        """Row by row."""
        return [Box(top, left, bottom, right) for top, bottom in self.rows for left, right in self.columns]

    def canvas(self, count: int, device: torch.device | str = 'cpu') -> 'Canvas':
        """An empty map of ``count`` logits a pixel, to which tiles are added."""
        return Canvas(self, count, device)


class Canvas:
    """Sums weighted tiles. Weights of a pixel add up to 1, and to exactly 1 where a single tile covers it, so that one
    tile over the whole image comes back to the bit.

    Attributes:
        logits: ``[count, H, W]`` float32; complete when every tile was added.
    """

    def __init__(self, grid: TileGrid, count: int, device: torch.device | str) -> None:
        self.grid = grid
        self.logits = torch.zeros(count, *grid.size, device=device)
        # A tile's weight is a product over the axes, and so is the sum over all tiles: each axis is normalised alone.
        self._rows = _weights(grid.rows, grid.size[0], grid.blend, device)
        self._columns = _weights(grid.columns, grid.size[1], grid.blend, device)

    def add(self, index: int, logits: torch.Tensor) -> None:
        """Add tile ``index`` of ``grid.boxes``; ``logits [count, h, w]`` in its own pixels."""
        box = self.grid.boxes[index]
        row, column = divmod(index, len(self.grid.columns))
        weight = self._rows[row][:, None] * self._columns[column][None, :]
        self.logits[:, box.top:box.bottom, box.left:box.right] += logits.float() * weight


@dataclass(frozen=True)
class ViewGeometry:
    """The setting ``view=dict(...)``, the same for training, mining, scoring and prediction.

    Attributes:
        grid: tiles along each axis; 1 is the whole image at once. ``'auto'``: along each axis as many as the side has
            times SAM2's input, rounded, at least 1 and at most ``MOST``.
        overlap: of neighbours, as a share of a tile's side, from 0 to 0.75.
        blend: how logits are averaged where tiles overlap: ``'hann'`` (sin^2 over the tile: a tile's say fades to
            nothing at its border, so no seam shows) or ``'mean'``.
        context: what the language model looks at. ``'image'``: the whole image, once; its [SEG] state prompts SAM2 on
            every tile. ``'tile'``: each tile is an image of its own.
        whole_share: share of the training draws that show the whole image in place of a tile.
    """

    grid: int | str = 1
    overlap: float = 0.25
    blend: str = 'hann'
    context: str = 'image'
    whole_share: float = 0.25

    def __post_init__(self) -> None:
        grid = self.grid
        if grid != 'auto' and (isinstance(grid, bool) or not isinstance(grid, int) or not 1 <= grid <= MOST):
            raise ValueError(f'grid: {grid!r} must be "auto" or a whole number from 1 to {MOST}')
        for name, most in (('overlap', 0.75), ('whole_share', 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
                raise ValueError(f'{name}: {value!r} must be a number from 0 to {most:g}')
        for name, known in (('blend', BLENDS), ('context', CONTEXTS)):
            if getattr(self, name) not in known:
                raise ValueError(f'{name}: {getattr(self, name)!r} must be one of {", ".join(known)}')

    @classmethod
    def of(cls, values: 'Mapping[str, Any] | ViewGeometry | int | str | None', where: str = 'view') -> 'ViewGeometry':
        """From a config's or a file's fields, or from the grid alone; None is the whole image.

        Raises:
            InputError: an unknown field or an impossible value; begins with ``where``.
        """
        if isinstance(values, ViewGeometry):
            return values
        if isinstance(values, (int, str)):
            values = dict(grid=values)
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values or {}) - set(known))
        if unknown:
            raise InputError(f'{where}: unknown field {unknown[0]}; there are {", ".join(known)}')
        try:
            return cls(**(values or {}))
        except ValueError as error:
            raise InputError(f'{where}.{error}') from None

    @property
    def plain(self) -> bool:
        """Whether every image is looked at as a whole."""
        return self.grid == 1

    def to_dict(self) -> dict[str, Any]:
        """JSON values of every field."""
        return asdict(self)

    def tiles(self, size: tuple[int, int], sam_size: int) -> TileGrid:
        """The tiles of an image of ``size`` (height, width) for a SAM2 input of ``sam_size`` pixels."""
        rows, columns = (_spans(side, self._count(side, sam_size), self.overlap) for side in size)
        return TileGrid((size[0], size[1]), rows, columns, self.blend)

    def boxes(self, size: tuple[int, int], sam_size: int) -> list[Box]:
        """The tiles of an image; none where it is looked at as a whole."""
        found = self.tiles(size, sam_size).boxes
        return found if len(found) > 1 else []

    def _count(self, side: int, sam_size: int) -> int:
        wanted = self.grid if isinstance(self.grid, int) else round(side / sam_size)
        return min(side, MOST, max(1, wanted))


def _spans(side: int, count: int, overlap: float) -> tuple[Span, ...]:
    """``count`` spans of one length, evenly spread over ``side`` pixels."""
    if count == 1:
        return ((0, side),)
    length = min(side, math.ceil(side / (count - (count - 1) * overlap)))
    starts = [round(k * (side - length) / (count - 1)) for k in range(count)]
    return tuple((start, start + length) for start in starts)


def _weights(spans: tuple[Span, ...], side: int, blend: str, device) -> list[torch.Tensor]:
    """The weights of each span's pixels, [length] float32; over all spans they add up to 1 at every pixel."""
    raw = []
    for start, stop in spans:
        length = stop - start
        # At the middles of the pixels, where a Hann window is nowhere 0.
        phase = (torch.arange(length, dtype=torch.float64) + 0.5) * (torch.pi / length)
        raw.append(phase.sin().square() if blend == 'hann' else torch.ones(length, dtype=torch.float64))
    total = torch.zeros(side, dtype=torch.float64)
    for (start, stop), weight in zip(spans, raw):
        total[start:stop] += weight
    return [(weight / total[start:stop]).float().to(device) for (start, stop), weight in zip(spans, raw)]
