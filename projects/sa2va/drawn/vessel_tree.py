"""Geometry of drawn vessels: trees grown step by step, and their anti-aliased rasters.

Everything here is geometry. How a vessel looks in an image is the business of the style modules.

Lengths are field units (u): 512 u is the width of a whole image, whatever its size in pixels. A :class:`View` maps them
to pixels and may squeeze one axis, as resizing an oblong photograph to a square does.
"""
from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import Callable, Sequence

import cv2
import numpy as np

FIELD = 512.0
ARTERY, VEIN = 0, 1
# Sub-pixel bits of cv2's fixed-point coordinates.
_SHIFT = 4
# The narrowest support that is drawn, in pixels. Optics spread a narrower vessel to about this width and make it
# fainter; below one pixel the thresholded support would fall to pieces depending on where the pixel grid happens to
# lie, and mask heads at a quarter of the resolution cannot follow such lines.
MIN_SUPPORT = 2.2


@dataclass
class Path:
    """One vessel from its origin to its end.

    Attributes:
        points: float32 ``[n, 2]``, (x, y) in u.
        width: float32 ``[n]``, diameter in u.
        kind: ``ARTERY`` or ``VEIN`` (angiograms know arteries only).
        level: 0 for a trunk, one more for every branching.
        contrast: opacity of this vessel relative to the others.
    """

    points: np.ndarray
    width: np.ndarray
    kind: int
    level: int
    contrast: float = 1.0


@dataclass(frozen=True)
class Root:
    """Where a trunk begins: position and heading (radians) in u, diameter in u."""

    x: float
    y: float
    heading: float
    width: float
    kind: int = VEIN
    tag: int = 0
    curvature: float = 0.0


@dataclass(frozen=True)
class Growth:
    """How a tree grows.

    Attributes:
        step: length of one step in u.
        min_width: branches that would be narrower are not grown.
        murray: exponent of Murray's law, w_parent^m = w_1^m + w_2^m (Murray 1926: 3; retina: 2.5 to 3).
        spacing: mean distance between two branchings in u for a vessel of 1 u; grows with the square root of the width.
        wiggle: random walk of the heading, radians per square root of a step, whatever ``persistence`` is.
        persistence: part of the curvature kept from step to step, 0 to 1; high values give long soft bends.
        taper: relative loss of width per u.
        twig: probability that a branching is a thin side branch.
        fork: probability that any other branching is nearly symmetric.
        reach: mean length in u of a vessel of 1 u before it ends; grows in proportion to its width.
        cell: side in u of the cells in which vessels of one kind keep off each other; 0 switches that off.
    """

    step: float = 4.0
    min_width: float = 1.0
    murray: float = 2.8
    spacing: float = 22.0
    wiggle: float = 0.13
    persistence: float = 0.8
    taper: float = 4e-4
    twig: float = 0.45
    fork: float = 0.3
    reach: float = 70.0
    cell: float = 9.0


# (x, y, heading, width, level, kind, tag) -> (wanted heading, strength 0..1), or None to end the vessel there.
Guide = Callable[[float, float, float, float, int, int, int], 'tuple[float, float] | None']


@dataclass
class _Canopy:
    """Which vessel passed through which cell, per kind."""

    cell: float
    owners: dict = field(default_factory=dict)

    def key(self, x: float, y: float, kind: int) -> tuple[int, int, int]:
        return int(x // self.cell), int(y // self.cell), kind


def grow(rng: np.random.Generator, roots: Sequence[Root], growth: Growth, guide: Guide, area: float,
         visible: Callable[[float, float], bool]) -> list[Path]:
    """Grow trees from their roots, widest vessel first, until they cover ``area``.

    Args:
        rng: source of every random number.
        roots: trunks.
        growth: the law of growth.
        guide: steers vessels and ends them.
        area: u^2; no further vessel is begun once the visible length times width has reached it.
        visible: whether a point counts towards ``area``.

    Returns:
        Paths, parents before their branches. A branch begins on the centre line of its parent.
    """
    queue: list = []
    for root in roots:
        heapq.heappush(queue, (-root.width, len(queue), root, 0, None))
    count, paths = len(queue), []
    kick = growth.wiggle * (1.0 - growth.persistence)
    canopy = _Canopy(max(growth.cell, 1e-6))
    while queue and area > 0:
        _, identity, root, level, parent = heapq.heappop(queue)
        x, y, heading, width = root.x, root.y, root.heading, root.width
        kind, tag, curvature, step = root.kind, root.tag, root.curvature, growth.step
        left = growth.reach * width * rng.uniform(0.5, 1.6) * (4.0 if level == 0 else 1.0)
        to_branch = growth.spacing * math.sqrt(width) * rng.uniform(0.3, 1.3)
        points, widths = [(x, y)], [width]
        side = 1.0 if rng.random() < 0.5 else -1.0
        noise: list[float] = []
        grace = 2 + int(2 * width / step)
        while left > 0 and width >= growth.min_width * 0.8:
            wanted = guide(x, y, heading, width, level, kind, tag)
            if wanted is None:
                break
            if not noise:
                noise = (rng.standard_normal(64) * kick).tolist()
            curvature = growth.persistence * curvature + noise.pop()
            turn = (wanted[0] - heading + math.pi) % (2 * math.pi) - math.pi
            heading += curvature + wanted[1] * turn
            x += step * math.cos(heading)
            y += step * math.sin(heading)
            if growth.cell:
                key = canopy.key(x, y, kind)
                owner = canopy.owners.setdefault(key, identity)
                if owner != identity and len(points) > grace and (level > 0 or len(points) > 30) and owner != parent:
                    break
                if owner == parent and len(points) > 3 * grace:
                    break
            width *= 1.0 - growth.taper * step
            points.append((x, y))
            widths.append(width)
            left -= step
            if visible(x, y):
                area -= step * width
            to_branch -= step
            if to_branch > 0:
                continue
            to_branch = growth.spacing * math.sqrt(width) * rng.uniform(0.5, 1.5)
            side = -side if rng.random() < 0.7 else side
            if rng.random() < growth.twig:
                child, angle = growth.min_width * rng.uniform(0.9, 1.6), rng.uniform(0.6, 1.4)
            elif rng.random() < growth.fork:
                child, angle = width * rng.uniform(0.7, 0.82), rng.uniform(0.4, 0.8)
            else:
                child, angle = width * rng.uniform(0.4, 0.7), rng.uniform(0.6, 1.2)
            if child < growth.min_width * 0.9 or child > 0.95 * width:
                continue
            before = width
            width = (width ** growth.murray - child ** growth.murray) ** (1.0 / growth.murray)
            # The stem gives way to the other side, the more the stronger the branch.
            heading -= side * angle * (child / before) ** 2 * 0.6
            start = Root(x, y, heading + side * angle, child, kind, tag)
            heapq.heappush(queue, (-child, count, start, level + 1, identity))
            count += 1
        if len(points) >= 3:
            paths.append(Path(np.array(points, np.float32), np.array(widths, np.float32), kind, level,
                              float(np.clip(rng.normal(1.0, 0.15), 0.6, 1.3))))
    return paths


@dataclass(frozen=True)
class View:
    """Affine map from u to pixels: ``pixel = matrix @ point + offset``.

    Pixel centres lie at integer coordinates, as in cv2.
    """

    matrix: np.ndarray
    offset: np.ndarray

    @staticmethod
    def of(size: int, scale_x: float = 1.0, scale_y: float = 1.0, centre: tuple[float, float] = (FIELD / 2, FIELD / 2),
           angle: float = 0.0) -> 'View':
        """The view of ``size`` x ``size`` pixels with ``centre`` (u) in the middle, rotated, then scaled by axis."""
        k = size / FIELD
        c, s = math.cos(angle), math.sin(angle)
        matrix = np.diag([k * scale_x, k * scale_y]) @ np.array([[c, -s], [s, c]])
        return View(matrix, np.full(2, (size - 1) / 2.0) - matrix @ np.asarray(centre, float))

    def points(self, points: np.ndarray) -> np.ndarray:
        """u ``[..., 2]`` -> pixels ``[..., 2]``."""
        return np.asarray(points) @ self.matrix.T + self.offset

    def widths(self, points: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Diameter in u -> diameter in pixels across the path: an affine map keeps area, so det / stretch along it."""
        along = np.gradient(points, axis=0) if len(points) > 2 else np.repeat(points[1:] - points[:1], len(points), 0)
        along = along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
        stretch = np.linalg.norm(along @ self.matrix.T, axis=1)
        return width * abs(np.linalg.det(self.matrix)) / np.maximum(stretch, 1e-9)

    def scale(self) -> float:
        """Pixels per u, geometric mean over directions."""
        return math.sqrt(abs(np.linalg.det(self.matrix)))


@dataclass(frozen=True)
class Projected:
    """A path in pixels: points ``[n, 2]``, diameter ``[n]`` and opacity ``[n]`` (0 to 1)."""

    points: np.ndarray
    width: np.ndarray
    opacity: np.ndarray
    kind: int


def project(paths: Sequence[Path], view: View, size: int, opacity: Callable[[np.ndarray, Path], np.ndarray]
            ) -> list[Projected]:
    """Map paths to pixels, leaving out those that never enter the image.

    A vessel narrower than ``MIN_SUPPORT`` pixels is drawn that wide and fainter in the same proportion.

    Args:
        opacity: (diameter in u ``[n]``, path) -> opacity ``[n]``.
    """
    out = []
    for path in paths:
        points = view.points(path.points)
        inside = ((points > -8) & (points < size + 8)).all(1)
        if not inside.any():
            continue
        width = view.widths(path.points, path.width)
        value = opacity(path.width, path) * np.minimum(width / MIN_SUPPORT, 1.0)
        out.append(Projected(points, np.maximum(width, MIN_SUPPORT), np.clip(value, 0.0, 1.0), path.kind))
    return out


def oversampling(size: int) -> int:
    """Sub-pixels per pixel and axis used to rasterise."""
    return 4 if size <= 640 else 3


def rasterise(paths: Sequence[Projected], size: int, passes: Sequence[tuple[float, float]] = ((1.0, 1.0),),
              solid: bool = False, min_width: float = 0.0) -> np.ndarray:
    """Draw paths with anti-aliasing.

    Args:
        paths: in pixels.
        size: side of the square image.
        passes: (fraction of the width, fraction of the opacity), wide to narrow; several make a rounded profile. Every
            pass draws the whole tree, so that a junction shows no seam.
        solid: draw with opacity 1 whatever the paths say.
        min_width: leave out pieces narrower than this, in pixels.

    Returns:
        float32 ``[size, size]``: opacity averaged over each pixel's area.
    """
    k = oversampling(size)
    canvas = np.zeros((size * k, size * k), np.uint8)
    for fraction, weight in passes:
        for path in paths:
            # Sub-pixel centres: pixel i covers sub-pixels k*i .. k*i + k - 1.
            points = np.rint((path.points * k + (k - 1) / 2.0) * (1 << _SHIFT)).astype(np.int32)
            thickness = np.maximum(np.rint(path.width * fraction * k), 1).astype(int)
            value = np.full(len(points), 255) if solid else np.rint(path.opacity * weight * 255 / 8).astype(int) * 8
            value = np.clip(value, 0, 255)
            cuts = np.flatnonzero((np.diff(thickness) != 0) | (np.diff(value) != 0)) + 1
            bounds = [0, *cuts.tolist(), len(points)]
            for begin, end in zip(bounds[:-1], bounds[1:]):
                if path.width[begin] < min_width:
                    continue
                piece = points[begin:min(end + 1, len(points))]
                cv2.polylines(canvas, [piece], False, int(value[begin]), int(thickness[begin]), cv2.LINE_8, _SHIFT)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0


def support_mask(paths: Sequence[Projected], size: int, dilation_px: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(coverage float32 ``[size, size]``, mask uint8 0/255): the drawn support and its threshold at one half.

    Args:
        dilation_px: added to every radius of the label, for deliberately thick ground truth; the image is not touched.
    """
    if dilation_px:
        paths = [Projected(p.points, p.width + 2 * dilation_px, p.opacity, p.kind) for p in paths]
    coverage = rasterise(paths, size, solid=True)
    return coverage, np.where(coverage > 0.5, 255, 0).astype(np.uint8)
