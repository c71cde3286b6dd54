"""X-ray coronary angiograms: contrast-filled tree over a moving chest, with what else absorbs X-rays.

The catheter, guide wires, sternal wires, ribs, spine, diaphragm and electrodes are drawn into the image and are not
part of the mask. Intensity follows Beer-Lambert, so whatever lies in one line of sight adds up in the exponent.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .appearance import blob, blur, recompress, ridges, smooth_noise, soft_edge, to_uint8
from .vessel_tree import ARTERY, FIELD, Growth, Path, Projected, Root, View, grow, project, rasterise, support_mask

CENTRE = FIELD / 2


@dataclass(frozen=True)
class Angiogram:
    """One drawn angiogram.

    Attributes:
        image: uint8 ``[size, size, 3]``, grey.
        mask: uint8 ``[size, size]`` 0/255, vessels only.
        catheter: float32 ``[size, size]`` coverage of the catheter where no vessel covers it.
    """

    image: np.ndarray
    mask: np.ndarray
    catheter: np.ndarray


def _wander(
    rng: np.random.Generator,
    x: float,
    y: float,
    heading: float,
    length: float,
    wiggle: float,
    step: float = 5.0,
    bend: float = 0.0,
) -> np.ndarray:
    """A smooth random curve, ``[n, 2]`` in u; ``bend`` is a constant turn per step."""
    n = max(4, int(length / step))
    turn = np.cumsum(rng.standard_normal(n) * wiggle * 0.3)
    angle = heading + np.cumsum(turn * 0.2 + rng.standard_normal(n) * wiggle * 0.2 + bend)
    return np.stack([x + np.cumsum(np.cos(angle)) * step, y + np.cumsum(np.sin(angle)) * step], 1)


def coronary_tree(rng: np.random.Generator) -> tuple[list[Path], tuple[float, float], float]:
    """(paths, ostium in u, heading of the first vessel): a left or right coronary artery, or a tree without anatomy."""
    trunk = rng.uniform(7.0, 16.0)
    side = 1.0 if rng.random() < 0.5 else -1.0
    anatomy = rng.random()
    x = CENTRE - side * rng.uniform(-40, 170)
    y = rng.uniform(30, 170)
    if anatomy < 0.5:  # left: two or three big vessels fan out from a short stem
        heading = math.pi / 2 + side * rng.uniform(0.2, 1.3)
        roots = []
        for i in range(int(rng.integers(2, 4))):
            spread = heading + side * rng.uniform(-0.3, 0.9) * (1 if i else -1)
            roots.append(
                Root(x, y, spread, trunk * rng.uniform(0.6, 1.0), ARTERY, tag=i, curvature=rng.normal(0, 0.03))
            )
    elif anatomy < 0.8:  # right: one C
        heading = math.pi / 2 + side * rng.uniform(0.3, 1.1)
        roots = [Root(x, y, heading, trunk, ARTERY, tag=9)]
    else:
        roots = [
            Root(
                rng.uniform(60, 450),
                rng.uniform(20, 450),
                rng.uniform(0, 2 * math.pi),
                trunk * rng.uniform(0.5, 1.0),
                ARTERY,
                tag=i,
            )
            for i in range(int(rng.integers(1, 4)))
        ]
        x, y, heading = roots[0].x, roots[0].y, roots[0].heading
    bends = rng.normal(0, 0.006, 10)
    bends[9] = -side * rng.uniform(0.008, 0.02)
    heart = (CENTRE + rng.normal(0, 30), CENTRE + rng.uniform(-10, 70))
    bound = rng.uniform(260, 380)

    def guide(px, py, direction, width, level, kind, tag):
        gx, gy = px - heart[0], py - heart[1]
        if math.hypot(gx, gy) > bound or not (-60 < px < FIELD + 60 and -60 < py < FIELD + 60):
            return None
        if level == 0:
            return direction + bends[tag] / 0.1, 0.1
        return math.atan2(gy + 30, gx), 0.012

    growth = Growth(
        step=4.0, min_width=rng.uniform(1.6, 3.4), murray=rng.uniform(2.4, 3.0), spacing=rng.uniform(9, 22),
        wiggle=float(np.exp(rng.normal(-2.0, 0.4))), persistence=rng.uniform(0.5, 0.9), taper=rng.uniform(5e-4, 2.5e-3),
        twig=rng.uniform(0.15, 0.5), fork=rng.uniform(0.15, 0.45), reach=rng.uniform(35, 75),
        cell=0.0 if rng.random() < 0.4 else rng.uniform(10, 18))
    area = FIELD * FIELD * rng.uniform(0.035, 0.12)
    paths = grow(rng, roots, growth, guide, area, lambda px, py: True)
    for path in paths:
        if path.width[0] > 3.5 and len(path.width) > 14 and rng.random() < 0.35:  # stenosis
            at, length = rng.integers(4, len(path.width) - 4), rng.uniform(1.5, 4.0)
            dip = np.exp(-((np.arange(len(path.width)) - at) / length) ** 2)
            path.width[:] *= 1.0 - rng.uniform(0.3, 0.75) * dip.astype(np.float32)
        ripple = smooth_series(rng, len(path.width), 5.0)
        path.width[:] *= 1.0 + ripple * rng.uniform(0.0, 0.09)
    return paths, (x, y), heading


def smooth_series(rng: np.random.Generator, n: int, length: float) -> np.ndarray:
    """Smooth random series of ``n`` float32, unit variance, correlated over about ``length`` steps."""
    knots = rng.standard_normal(max(3, int(n / length) + 2))
    return np.interp(np.linspace(0, len(knots) - 1, n), np.arange(len(knots)), knots).astype(np.float32)


def _line(points: np.ndarray, width: float, opacity: float, view: View) -> Projected:
    points = np.asarray(points, np.float32)
    n = len(points)
    return Projected(view.points(points), np.full(n, max(width * view.scale(), 1.0)), np.full(n, opacity), ARTERY)


def _background(rng: np.random.Generator, size: int, view: View) -> np.ndarray:
    """Absorption of the chest, float32 ``[size, size]``, in the exponent, about 0 on average."""
    k = size / FIELD
    mu = smooth_noise(rng, size, rng.uniform(1.5, 3)) * rng.uniform(0.05, 0.3)
    mu += smooth_noise(rng, size, rng.uniform(5, 12)) * rng.uniform(0.01, 0.07)
    mu += smooth_noise(rng, size, rng.uniform(20, 60)) * rng.uniform(0.0, 0.03)
    if rng.random() < 0.6:  # ribs
        tilt, gap = rng.normal(0, 0.35), rng.uniform(60, 130)
        bars, bend = [], rng.normal(0, 0.006)
        y = rng.uniform(-60, 20)
        while y < 640:
            bars.append(_line(_wander(rng, -60, y, tilt, 700, 0.01, 8.0, bend), rng.uniform(16, 38), 1.0, view))
            y += gap * rng.uniform(0.8, 1.2)
        layer = rasterise(bars, size)
        rib = blur(layer, rng.uniform(1.0, 4.0) * k)
        edge = np.clip(blur(layer, 2 * k) * 2 - 1, 0, 1)
        mu += (rib - rng.uniform(0.0, 0.5) * edge) * rng.uniform(0.04, 0.2)
    if rng.random() < 0.55:  # spine
        x = rng.uniform(-40, 550)
        spine = _wander(rng, x, -20, math.pi / 2 + rng.normal(0, 0.15), 600, 0.01, 8.0)
        bone = blur(rasterise([_line(spine, rng.uniform(55, 100), 1.0, view)], size), rng.uniform(3, 9) * k)
        discs = (
            1.0 + 0.25 * np.sin(np.arange(size, dtype=np.float32) / k / rng.uniform(6, 11) + rng.uniform(0, 6))[:, None]
        )
        mu += bone * discs * rng.uniform(0.08, 0.3)
    if rng.random() < 0.55:  # diaphragm
        x, y = rng.uniform(0, 1) * size, rng.uniform(0.85, 1.35) * size
        dome = blob(size, x, y, rng.uniform(0.3, 0.8) * size, rng.uniform(0.25, 0.5) * size, rng.normal(0, 0.2))
        mu += soft_edge(dome, rng.uniform(0.03, 0.15)) * rng.uniform(0.15, 0.7)
    if rng.random() < 0.6:  # heart shadow
        dome = blob(size, rng.uniform(0.2, 0.8) * size, rng.uniform(0.3, 0.8) * size, rng.uniform(0.25, 0.55) * size,
                    rng.uniform(0.25, 0.5) * size, rng.uniform(0, 3))
        mu += soft_edge(dome, rng.uniform(0.05, 0.5)) * rng.uniform(0.05, 0.35)
    if rng.random() < 0.4:  # lung markings: a faint tangle
        mu += ridges(rng, size, rng.uniform(6, 16), rng.uniform(1.0, 2.5)) * rng.uniform(0.02, 0.09)
    return mu


def _devices(rng: np.random.Generator, size: int, view: View, ostium: tuple[float, float], heading: float
             ) -> tuple[np.ndarray, np.ndarray]:
    """(absorption of everything that is neither body nor vessel, coverage of the catheter)."""
    mu = np.zeros((size, size), np.float32)
    catheter = np.zeros((size, size), np.float32)
    k = size / FIELD
    if rng.random() < 0.75:
        width = rng.uniform(4.5, 10.0)
        away = -math.pi / 2 + rng.normal(0, 0.6)
        first = _wander(rng, *ostium, heading + math.pi, rng.uniform(10, 50), 0.02)
        hook = rng.uniform(0.04, 0.12) * (1 if rng.random() < 0.5 else -1)
        points, angle = list(first), heading + math.pi
        x, y = first[-1]
        for _ in range(160):
            turn = (away - angle + math.pi) % (2 * math.pi) - math.pi
            angle += float(np.clip(turn, -abs(hook), abs(hook)))
            x, y = x + 5 * math.cos(angle), y + 5 * math.sin(angle)
            points.append((x, y))
            if not (-30 < x < 542 and -30 < y < 542):
                break
        tube = _line(np.array(points), width, 1.0, view)
        catheter = np.maximum(catheter, rasterise([tube], size))
        wall = catheter - rng.uniform(0.0, 0.7) * rasterise([tube], size, ((rng.uniform(0.4, 0.65), 1.0),))
        mu += blur(wall, 0.7 * k) * rng.uniform(0.1, 0.75)
    wires = []
    if rng.random() < 0.25:  # guide wires, pacing leads
        for _ in range(rng.integers(1, 3)):
            x, y = rng.uniform(0, FIELD), -10.0
            wires.append(_line(_wander(rng, x, y, math.pi / 2 + rng.normal(0, 0.5), rng.uniform(200, 800), 0.03),
                               rng.uniform(1.0, 3.0), 1.0, view))
    if rng.random() < 0.15:  # sternal wires
        x, y = rng.uniform(60, 450), rng.uniform(0, 60)
        for _ in range(rng.integers(2, 6)):
            a = np.linspace(0, 2 * math.pi * rng.uniform(0.8, 1.1), 24) + rng.uniform(0, 6)
            loop = np.stack([x + rng.uniform(8, 20) * np.cos(a), y + rng.uniform(4, 12) * np.sin(a)], 1)
            wires.append(_line(loop, rng.uniform(1.2, 2.5), 1.0, view))
            y += rng.uniform(50, 110)
    if wires:
        mu += blur(rasterise(wires, size), 0.5 * k) * rng.uniform(0.2, 0.9)
    if rng.random() < 0.2:  # electrodes, clips
        spots = np.zeros((size, size), np.float32)
        for _ in range(rng.integers(1, 5)):
            cv2.ellipse(
                spots,
                (int(rng.uniform(0, size) * 16), int(rng.uniform(0, size) * 16)),
                (int(rng.uniform(2, 12) * k * 16), int(rng.uniform(2, 12) * k * 16)),
                rng.uniform(0, 180),
                0,
                360,
                1.0,
                -1,
                cv2.LINE_8,
                4,
            )
        mu += blur(spots, 0.8 * k) * rng.uniform(0.1, 0.8)
    return mu, catheter


def _detector(rng: np.random.Generator, size: int, light: np.ndarray) -> np.ndarray:
    """Transmitted light (about 0 to 1) -> grey image on 0..255: window, blur, quantum noise, collimator, overlay
    text."""
    k = size / FIELD
    r = blob(size, size / 2, size / 2, size / 2, size / 2)
    light = light * (1.0 - rng.uniform(0.0, 0.35) * np.clip(r, 0, 1.4) ** rng.uniform(2, 4))
    light = blur(light, rng.uniform(0.3, 1.3) * k)
    if rng.random() < 0.3:  # edge enhancement of the workstation
        light = light + (light - blur(light, rng.uniform(1.5, 5) * k)) * rng.uniform(0.3, 1.2)
    light = np.clip(light, 0.01, None)
    if rng.random() < 0.85:
        photons = np.exp(rng.uniform(math.log(500), math.log(9000)))
        noise = rng.standard_normal((size, size), dtype=np.float32)
        if rng.random() < 0.6:
            noise = blur(noise, 0.7 * k)
            noise /= max(float(noise.std()), 1e-6)
        light = light + noise * np.sqrt(light / np.float32(photons))
    low, high = np.percentile(light[::8, ::8], [1, 99])
    grey = (light - low) / max(high - low, 1e-3)
    span = rng.uniform(110, 235)
    grey = np.clip(grey * span + rng.uniform(0, max(1.0, 245 - span)), 0, 255) / 255.0
    grey = cv2.pow(grey, float(np.exp(rng.normal(0, 0.2)))) * 255.0
    shape = rng.random()
    dark = rng.uniform(0, 25)
    if shape < 0.12:  # round intensifier
        grey = dark + (grey - dark) * soft_edge(r / rng.uniform(0.98, 1.2), 0.02)
    elif shape < 0.3:  # collimator blades
        border = [int(v * size) for v in rng.uniform(0, 0.1, 4) * (rng.random(4) < 0.6)]
        field = np.zeros((size, size), np.float32)
        field[border[0]:size - border[1], border[2]:size - border[3]] = 1.0
        grey = dark + (grey - dark) * blur(field, rng.uniform(0.3, 3) * k)
    if rng.random() < 0.1:
        place = (
            int(rng.uniform(0, 0.6) * size),
            int(rng.choice([rng.uniform(0.03, 0.1), rng.uniform(0.9, 0.98)]) * size),
        )
        text = ''.join(rng.choice(list('0123456789LRAOCU :./kVm'), int(rng.integers(4, 18))))
        overlay = np.zeros((size, size), np.uint8)
        cv2.putText(overlay, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * k, 230, 1, cv2.LINE_AA)
        grey = np.maximum(grey, overlay)
    return grey


def _frame(rng: np.random.Generator, size: int, paths: list[Path]) -> View:
    """Aim at the tree as an operator does: it fills most of the image and may leave it on one side."""
    points = (
        np.concatenate([path.points for path in paths]) if paths else np.array([[0, 0], [FIELD, FIELD]], np.float32)
    )
    low, high = np.percentile(points, [3, 97], axis=0)
    extent = float(max(high - low)) + 1.0
    zoom = float(np.clip(FIELD * rng.uniform(0.7, 1.8) / extent, 0.75, 2.4))
    centre = (low + high) / 2 + rng.normal(0, 0.05, 2) * FIELD / zoom
    return View.of(size, zoom, zoom * rng.uniform(0.9, 1.1), (float(centre[0]), float(centre[1])), rng.normal(0, 0.15))


def render(rng: np.random.Generator, size: int, label_dilation_px: float = 0.0) -> Angiogram:
    """Draw one angiogram with its layers."""
    for _ in range(6):  # a tree that choked itself early shows next to nothing: grow another
        paths, ostium, heading = coronary_tree(rng)
        if sum(len(path.width) * float(path.width.mean()) for path in paths) * 4.0 > 0.028 * FIELD * FIELD:
            break
    view = _frame(rng, size, paths)
    thin, full = rng.uniform(0.3, 0.65), rng.uniform(5.0, 9.0)

    def opacity(width: np.ndarray, path: Path) -> np.ndarray:
        return 0.8 * (thin + (1 - thin) * np.minimum(width / full, 1.0)) * path.contrast

    drawn = project(paths, view, size, opacity)
    profile = ((1.0, rng.uniform(0.5, 0.8)), (0.72, 0.9), (0.4, 1.0))
    # Two sheets (front and back of the heart) add up where they cross.
    front = rasterise(drawn[0::2], size, profile)
    back = rasterise(drawn[1::2], size, profile)
    vessel = np.maximum(front, back) + 0.45 * np.minimum(front, back)
    k = size / FIELD
    vessel = blur(vessel, rng.uniform(0.5, 1.2) * k)
    flow = 1.0 - np.clip(smooth_noise(rng, size, 3), 0, 2) * rng.uniform(0.0, 0.3)
    devices, catheter = _devices(rng, size, view, ostium, heading)
    mu = _background(rng, size, view) + devices + vessel * flow * np.exp(rng.uniform(math.log(0.3), math.log(1.1)))
    if rng.random() < 0.2:  # stain of the muscle
        mu += blur(vessel, 18 * k) * rng.uniform(0.1, 0.5)
    if rng.random() < 0.1:  # subtraction: bones nearly gone
        mu = vessel * rng.uniform(0.4, 0.9) + 0.15 * (mu - mu.mean())
    grey = _detector(rng, size, np.exp(-mu) * 0.5)
    image = np.repeat(to_uint8(grey)[..., None], 3, axis=2)
    if rng.random() < 0.4:
        image = np.repeat(recompress(rng, image, 50, 95)[..., :1], 3, axis=2)
    coverage, mask = support_mask(drawn, size, label_dilation_px)
    return Angiogram(image, mask, np.where(coverage > 0, 0.0, catheter).astype(np.float32))


def draw_angiogram(
    rng: np.random.Generator, size: int, label_dilation_px: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """One angiogram: (image uint8 ``[size, size, 3]``, mask uint8 ``[size, size]`` 0/255)."""
    drawn = render(rng, size, label_dilation_px)
    return drawn.image, drawn.mask
