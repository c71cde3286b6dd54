"""Fundus photographs: retinal tree, optic disc, fovea, choroid, lesions, camera.

Colours, contrasts and widths span what colour fundus cameras of several makers give, measured on images resized to a
512 px square: vessel diameters of 0.8 to 7 px, mask fraction 0.05 to 0.11, green-channel contrast of 10 to 35 %.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .appearance import blob, blur, recompress, ridges, smooth_noise, soft_edge, to_uint8
from .vessel_tree import (
    ARTERY,
    FIELD,
    VEIN,
    Growth,
    Path,
    Projected,
    Root,
    View,
    grow,
    project,
    rasterise,
    support_mask,
)

CENTRE = FIELD / 2


@dataclass(frozen=True)
class Eye:
    """Anatomy in u: optic disc, fovea, field of view; ``side`` is +1 if the fovea lies to the right of the disc."""

    disc: tuple[float, float]
    disc_radius: float
    fovea: tuple[float, float]
    side: float
    fov_radius: float
    trunk: float
    """Diameter of the widest vein."""


def draw_anatomy(rng: np.random.Generator) -> Eye:
    """Place disc and fovea: macula-centred (most cameras), disc-centred, or anywhere."""
    fov = 250.0
    layout = rng.random()
    disc_radius = rng.uniform(22, 34) if layout < 0.5 else rng.uniform(26, 50)
    side = 1.0 if rng.random() < 0.5 else -1.0
    separation = disc_radius * rng.uniform(4.4, 6.0)
    tilt = rng.normal(0.08, 0.06)
    if layout < 0.5:
        mid = rng.uniform(0.55, 1.0)
    elif layout < 0.85:
        mid = rng.uniform(-0.15, 0.2)
    else:
        mid = rng.uniform(0.0, 1.4)
    disc = (CENTRE - side * separation * mid + rng.normal(0, 8), CENTRE + rng.normal(0, 18))
    fovea = (disc[0] + side * separation * math.cos(tilt), disc[1] + separation * math.sin(tilt))
    return Eye(disc, disc_radius, fovea, side, fov, disc_radius * rng.uniform(0.15, 0.23))


def retinal_tree(rng: np.random.Generator, eye: Eye, wiggle: float | None = None) -> list[Path]:
    """Arteries and veins of one retina."""
    arcade = math.hypot(eye.fovea[0] - eye.disc[0], eye.fovea[1] - eye.disc[1]) * rng.uniform(0.8, 1.05)
    roots = []
    for vertical in (-1.0, 1.0):  # superior, inferior
        for kind in (VEIN, ARTERY):
            scale = 1.0 if kind == VEIN else rng.uniform(0.65, 0.88)
            # Temporal arcade: leaves vertically, then bends around the fovea.
            heading = vertical * (math.pi / 2 + eye.side * rng.normal(0.0, 0.22))
            x = eye.disc[0] + rng.normal(0, 0.16) * eye.disc_radius
            y = eye.disc[1] + rng.normal(0, 0.16) * eye.disc_radius
            roots.append(Root(x, y, heading, eye.trunk * scale * rng.uniform(0.85, 1.1), kind, tag=int(vertical)))
            for _ in range(1 + int(rng.random() < 0.45)):  # nasal
                spread = rng.uniform(0.25, 1.1)
                heading = math.atan2(vertical * math.sin(spread), -eye.side * math.cos(spread))
                roots.append(Root(x, y, heading, eye.trunk * scale * rng.uniform(0.45, 0.8), kind, tag=2))
    for _ in range(rng.integers(2, 8)):  # papillomacular twigs
        angle = rng.uniform(-0.7, 0.7)
        heading = math.atan2(math.sin(angle), eye.side * math.cos(angle))
        roots.append(Root(*eye.disc, heading, rng.uniform(1.2, 2.4), int(rng.random() < 0.5), tag=3))

    avascular = eye.disc_radius * rng.uniform(0.3, 0.9)
    pull = rng.uniform(0.05, 0.13)
    fx, fy = eye.fovea
    dx, dy = eye.disc

    def guide(x, y, heading, width, level, kind, tag):
        if (x - CENTRE) ** 2 + (y - CENTRE) ** 2 > (eye.fov_radius * 1.45) ** 2:
            return None
        gx, gy = x - fx, y - fy
        to_fovea = math.hypot(gx, gy)
        if to_fovea < avascular and level > 0:
            return None
        radial = math.atan2(y - dy, x - dx)
        if (x - dx) ** 2 + (y - dy) ** 2 < (1.3 * eye.disc_radius) ** 2:
            return heading, 0.0  # on the disc vessels run straight on
        if level == 0 and abs(tag) == 1:
            # Tangent of a circle around the fovea, corrected towards its radius.
            turning = -eye.side * tag  # sense of rotation seen from the fovea
            tangent = math.atan2(gx * turning, -gy * turning)
            off = (to_fovea - arcade) / arcade
            inward = math.atan2(-gy, -gx)
            turn = (inward - tangent + math.pi) % (2 * math.pi) - math.pi
            past = (x - fx) * eye.side > 0.2 * arcade
            if past:  # beyond the fovea the arcade opens up again
                return math.atan2(tag * 0.45, eye.side), pull * 0.5
            return tangent + max(-0.9, min(0.9, off * 1.6)) * math.copysign(1.0, turn), pull
        if tag == 2:
            return radial, pull * 0.5
        temporal = (x - dx) * eye.side > 0
        inside = to_fovea < arcade
        if temporal and inside and level > 0:
            return math.atan2(-gy, -gx), 0.02 if to_fovea > 2 * avascular else -0.04
        return radial, 0.04 if level else pull

    growth = Growth(
        step=4.0, min_width=max(1.0, eye.disc_radius * rng.uniform(0.03, 0.05)), murray=rng.uniform(2.4, 3.0),
        spacing=rng.uniform(15, 34), wiggle=wiggle if wiggle is not None else float(np.exp(rng.normal(-2.1, 0.45))),
        persistence=rng.uniform(0.4, 0.9), taper=rng.uniform(1e-4, 8e-4), twig=rng.uniform(0.15, 0.5),
        fork=rng.uniform(0.15, 0.4), reach=rng.uniform(60, 170), cell=rng.uniform(9, 17) * eye.disc_radius / 30)
    area = math.pi * eye.fov_radius ** 2 * rng.uniform(0.06, 0.125)
    radius2 = eye.fov_radius ** 2
    return grow(rng, roots, growth, guide, area, lambda x, y: (x - CENTRE) ** 2 + (y - CENTRE) ** 2 < radius2)


@dataclass(frozen=True)
class Scene:
    """A retina on the pixel grid: what was grown, where, and its rasters (float32 ``[size, size]``)."""

    eye: Eye
    view: View
    size: int
    veins: list[Projected]
    arteries: list[Projected]
    fov: np.ndarray
    fov_radius: np.ndarray

    @property
    def vessels(self) -> list[Projected]:
        return self.veins + self.arteries

    def pixel(self, point: tuple[float, float]) -> tuple[float, float]:
        x, y = self.view.points(np.asarray(point, float))
        return float(x), float(y)

    def ellipse(self, point: tuple[float, float], radius: float, squash: float = 1.0) -> np.ndarray:
        """Normalised radius around a point in u."""
        x, y = self.pixel(point)
        # Axis-aligned stretch of the view; its rotation is small and circles do not show it.
        rx, ry = np.linalg.norm(self.view.matrix, axis=1) * radius
        return blob(self.size, x, y, rx * squash, ry)


def compose(rng: np.random.Generator, size: int, wiggle: float | None = None) -> Scene:
    """Grow a retina and choose how the camera frames it."""
    eye = draw_anatomy(rng)
    paths = retinal_tree(rng, eye, wiggle)
    frame = rng.random()
    if frame < 0.25:  # oblong sensors squeezed to a square, field of view cut above and below
        sx, sy = rng.uniform(0.88, 1.0), rng.uniform(1.0, 1.4)
    elif frame < 0.45:  # the whole disc is seen
        sx = rng.uniform(0.85, 1.0)
        sy = sx * rng.uniform(0.95, 1.1)
    else:  # narrow field or a crop
        sx = rng.uniform(1.1, 2.3)
        sy = sx * rng.uniform(0.85, 1.2)
    zoom = max(sx, sy, 1.0) - 1.0
    shift = 60.0 * zoom + 4.0
    centre = (CENTRE + rng.uniform(-shift, shift), CENTRE + rng.uniform(-shift, shift))
    view = View.of(size, sx, sy, centre, rng.normal(0, 0.12))
    weight = rng.uniform(0.35, 0.8)  # opacity of the thinnest vessels relative to the widest
    full = rng.uniform(2.0, 4.5)

    def opacity(width: np.ndarray, path: Path) -> np.ndarray:
        return 0.7 * (weight + (1 - weight) * np.minimum(width / full, 1.0)) * path.contrast

    drawn = project(paths, view, size, opacity)
    x, y = view.points(np.array([CENTRE, CENTRE]))
    rx, ry = np.linalg.norm(view.matrix, axis=1) * eye.fov_radius
    radius = blob(size, float(x), float(y), rx, ry)
    fov = soft_edge(radius, rng.uniform(0.005, 0.03))
    veins, arteries = ([p for p in drawn if p.kind == kind] for kind in (VEIN, ARTERY))
    return Scene(eye, view, size, veins, arteries, fov, radius)


def _background(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Retina without vessels: float32 ``[size, size, 3]``, RGB on 0..255, before light fall-off."""
    size, eye = scene.size, scene.eye
    red = rng.uniform(110, 225)
    base = np.array([red, red * rng.uniform(0.24, 0.55), 0.0], np.float32)
    base[2] = base[1] * rng.uniform(0.1, 0.75)
    image = np.empty((size, size, 3), np.float32)
    image[:] = base
    # Pigment and choroid, seen more in green and blue than in red.
    texture = smooth_noise(rng, size, rng.uniform(3, 8)) * rng.uniform(0.02, 0.09)
    texture += smooth_noise(rng, size, rng.uniform(12, 40)) * rng.uniform(0.0, 0.05)
    tint = np.array([rng.uniform(0.3, 0.8), 1.0, rng.uniform(0.7, 1.2)], np.float32)
    if rng.random() < 0.45:  # tigroid: choroidal vessels as a soft web
        web = ridges(rng, size, rng.uniform(10, 26), rng.uniform(1.2, 3.0))
        fade = 1.0 / (1.0 + np.exp(-2.0 * smooth_noise(rng, size, 2)))
        texture += (web - web.mean()) * fade * rng.uniform(-0.12, 0.25)
    image *= 1.0 + texture[..., None] * tint
    if rng.random() < 0.3:  # patches of another hue
        patch = np.clip(smooth_noise(rng, size, rng.uniform(2, 5)), -1.5, 1.5)[..., None]
        image += patch * np.array([rng.normal(0, 9), rng.normal(0, 5), rng.normal(0, 4)], np.float32)
    # Fovea.
    if rng.random() < 0.9:
        r = scene.ellipse(eye.fovea, eye.disc_radius * rng.uniform(1.0, 2.2))
        dark = np.exp(-r * r)[..., None] * np.array(
            [rng.uniform(0.05, 0.35), rng.uniform(0.1, 0.5), rng.uniform(0.0, 0.4)], np.float32)
        image *= 1.0 - dark
    _disc(rng, scene, image, base)
    return image


def _disc(rng: np.random.Generator, scene: Scene, image: np.ndarray, base: np.ndarray) -> None:
    eye = scene.eye
    x, y = scene.pixel(eye.disc)
    reach = int(eye.disc_radius * np.linalg.norm(scene.view.matrix, axis=1).max() * 4)
    if not (-reach < x < scene.size + reach and -reach < y < scene.size + reach):
        return
    # Beyond four radii the glow is below one grey level; working on the window alone halves the time.
    window = tuple(slice(max(0, int(c) - reach), max(0, int(c) + reach)) for c in (y, x))
    image = image[window]
    squash = rng.uniform(0.82, 1.02)
    r = scene.ellipse(eye.disc, eye.disc_radius, squash)[window]
    r = r * (1.0 + 0.03 * smooth_noise(rng, scene.size, 8)[window])
    if rng.random() < 0.6:  # atrophy or glow around the disc
        halo = np.exp(-(r / rng.uniform(1.1, 2.0)) ** 2)[..., None]
        tint = [rng.uniform(-0.05, 0.25), rng.uniform(-0.1, 0.5), rng.uniform(-0.1, 0.4)]
        image += halo * base * np.array(tint, np.float32)
    colour = np.array([min(255.0, base[0] * rng.uniform(1.05, 1.6)), 0, 0], np.float32)
    colour[1] = np.clip(colour[0] * rng.uniform(0.5, 0.9), base[1] * 1.3, 245)
    colour[2] = colour[1] * rng.uniform(0.15, 0.7)
    alpha = soft_edge(r, rng.uniform(0.15, 0.6))[..., None] * rng.uniform(0.6, 1.0)
    image += alpha * (colour - image)
    cup_at = (eye.disc[0] + eye.side * eye.disc_radius * rng.uniform(-0.05, 0.25), eye.disc[1] + rng.normal(0, 2))
    cup = scene.ellipse(cup_at, eye.disc_radius * rng.uniform(0.3, 0.7))[window]
    glow = np.exp(-cup ** rng.uniform(2, 5))[..., None] * rng.uniform(0.0, 0.6)
    image += glow * (np.array([255, 250, rng.uniform(120, 240)], np.float32) - image)


def _lesions(rng: np.random.Generator, scene: Scene, image: np.ndarray) -> None:
    """Exudates, drusen, haemorrhages, microaneurysms, laser scars: spots, never lines."""
    size, k = scene.size, scene.view.scale()

    def spots(count: int, radius: tuple[float, float], gain: np.ndarray, soft: float, cluster: bool) -> None:
        layer = np.zeros((size, size), np.float32)
        cx, cy = rng.uniform(0.15, 0.85, 2) * size
        spread = rng.uniform(0.04, 0.14) * size if cluster else size
        for _ in range(count):
            x, y = (rng.normal(cx, spread), rng.normal(cy, spread)) if cluster else rng.uniform(0, size, 2)
            r = rng.uniform(*radius) * k
            axes = (int(16 * r * rng.uniform(0.6, 1.3)), int(16 * r))
            cv2.ellipse(layer, (int(16 * x), int(16 * y)), (max(axes[0], 8), max(axes[1], 8)), rng.uniform(0, 180), 0,
                        360, rng.uniform(0.4, 1.0), -1, cv2.LINE_8, 4)
        image[:] *= 1.0 + blur(layer, soft * k)[..., None] * gain

    if rng.random() < 0.3:  # exudates and drusen
        spots(int(rng.integers(5, 60)), (0.6, 4.0),
              np.array([0.25, 0.8, 0.6], np.float32) * rng.uniform(0.3, 1), 0.7, True)
    if rng.random() < 0.3:  # microaneurysms and dot haemorrhages
        spots(int(rng.integers(5, 40)), (0.6, 3.0),
              np.array([-0.15, -0.4, -0.3], np.float32) * rng.uniform(0.4, 1), 0.6, rng.random() < 0.5)
    if rng.random() < 0.12:  # blot haemorrhages
        spots(int(rng.integers(1, 10)), (4, 13),
              np.array([-0.25, -0.5, -0.4], np.float32) * rng.uniform(0.4, 1), 1.5, True)
    if rng.random() < 0.12:  # cotton wool
        spots(int(rng.integers(1, 8)), (5, 14),
              np.array([0.2, 0.6, 0.5], np.float32) * rng.uniform(0.3, 0.9), 4.0, False)
    if rng.random() < 0.1:  # laser scars
        spots(int(rng.integers(20, 120)), (2.5, 5.0), np.array([0.1, 0.4, 0.2], np.float32), 1.0, rng.random() < 0.5)
        spots(int(rng.integers(5, 40)), (1.5, 4.0), np.array([-0.5, -0.4, -0.2], np.float32), 0.8, True)


def _fibres(rng: np.random.Generator, scene: Scene, image: np.ndarray) -> None:
    """Bright sheen of the nerve fibre layer: broken soft streaks, brighter than what lies beneath."""
    size = scene.size
    layer = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(2, 12)):
        x, y = rng.uniform(0.1, 0.9, 2) * size
        heading, points = rng.uniform(0, 2 * math.pi), []
        for _ in range(rng.integers(6, 22)):
            heading += rng.normal(0, 0.35)
            x, y = x + 5 * math.cos(heading), y + 5 * math.sin(heading)
            points.append((x, y))
        cv2.polylines(layer, [np.int32(np.array(points) * 16)], False, rng.uniform(0.3, 1.0), int(rng.integers(1, 4)),
                      cv2.LINE_8, 4)
    layer = blur(layer, rng.uniform(0.8, 2.5)) * np.clip(0.6 + 0.6 * smooth_noise(rng, size, 40), 0, 1.6)
    image += layer[..., None] * np.array([25, 30, 16], np.float32) * rng.uniform(0.4, 1.6)


def paint_vessels(rng: np.random.Generator, scene: Scene, image: np.ndarray) -> None:
    """Absorb light along veins and arteries; arteries are lighter and wear a brighter reflex."""
    size = scene.size
    sharp = rng.uniform(0.35, 1.1) * size / FIELD
    profile = ((1.0, rng.uniform(0.55, 0.85)), (0.62, 1.0))
    # Some lengths of every tree are pale: focus, thickness of the tissue above, flow.
    pale = 1.0 - np.clip(smooth_noise(rng, size, rng.uniform(3, 8)), 0, 2) * rng.uniform(0.0, 0.25)
    strength = rng.uniform(0.5, 1.0)
    ratio = rng.uniform(0.6, 1.0)
    spectrum = np.array([rng.uniform(0.02, 0.4), 1.0, rng.uniform(0.3, 0.9)], np.float32)
    for paths, level, reflex, tint in (
            (scene.veins, strength, rng.uniform(0.0, 0.15), rng.uniform(1.0, 1.25)),
            (scene.arteries, strength * ratio, rng.uniform(0.0, 0.45), rng.uniform(0.5, 1.0))):
        if not paths:
            continue
        dark = blur(rasterise(paths, size, profile), sharp) * pale * level
        if reflex > 0.05:
            streak = blur(rasterise(paths, size, ((0.3, 1.0),), min_width=2.6 * size / FIELD), sharp * 0.8)
            dark -= streak * level * reflex
        if rng.random() < 0.25:  # bright margins
            wide = blur(dark, rng.uniform(2.0, 3.5) * size / FIELD)
            image *= 1.0 + (np.clip(wide - dark, 0, 1) * rng.uniform(0.1, 0.5))[..., None]
        absorb = spectrum.copy()
        absorb[0] *= tint
        image *= 1.0 - np.clip(dark, 0, 0.95)[..., None] * absorb


def _light(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Light field, float32 ``[size, size]``, mean about 1: fall-off to the rim, a slant, a smooth unevenness."""
    size = scene.size
    r = scene.fov_radius
    light = 1.0 - rng.uniform(0.0, 0.55) * np.clip(r, 0, 1.2) ** rng.uniform(2, 5)
    across = np.arange(size, dtype=np.float32) / size - 0.5
    x, y = across[None, :], across[:, None]
    light = light * (1.0 + rng.normal(0, 0.2) * x + rng.normal(0, 0.2) * y)
    light *= 1.0 + smooth_noise(rng, size, 1.5) * rng.uniform(0.0, 0.12)
    if rng.random() < 0.3:  # dark crescent or shadow
        x0, y0 = rng.uniform(-0.1, 1.1, 2) * size
        shadow = np.exp(-blob(size, x0, y0, rng.uniform(0.12, 0.4) * size, rng.uniform(0.12, 0.4) * size) ** 2)
        light *= 1.0 - shadow * rng.uniform(0.1, 0.55)
    return np.clip(light, 0.05, 2.0)


def expose(rng: np.random.Generator, scene: Scene, image: np.ndarray) -> np.ndarray:
    """Light, rim, haze, blur, gamma, noise, compression: float RGB -> uint8 RGB."""
    size = scene.size
    image = image * _light(rng, scene)[..., None]
    if rng.random() < 0.3:  # haze
        veil = rng.uniform(0.05, 0.22)
        tone = np.array([rng.uniform(90, 170), rng.uniform(60, 120), rng.uniform(30, 90)], np.float32)
        image = image * (1 - veil) + veil * tone
    if rng.random() < 0.15:  # bright reflex along the rim
        rim = np.exp(-((scene.fov_radius - rng.uniform(0.93, 1.0)) / rng.uniform(0.02, 0.06)) ** 2)
        image += (rim * np.clip(smooth_noise(rng, size, 2), 0, 2))[..., None] * np.array([40, 35, 25], np.float32)
    fov = scene.fov
    if rng.random() < 0.25:  # marker notch at the rim
        a = rng.uniform(0, 2 * math.pi)
        x, y = scene.pixel((CENTRE + 250 * math.cos(a), CENTRE + 250 * math.sin(a)))
        notch = soft_edge(blob(size, x, y, 0.022 * size, 0.022 * size), 0.1)
        fov = np.maximum(fov, notch) if rng.random() < 0.5 else fov * (1 - notch)
    black = np.array([rng.uniform(0, 12)] * 3, np.float32) * rng.uniform(0, 1, 3).astype(np.float32)
    image = image * fov[..., None] + black * (1 - fov[..., None])
    image = blur(image, max(0.0, rng.normal(0.45, 0.35)) * size / FIELD)
    image = np.clip(image, 0, 255) / 255.0
    if rng.random() < 0.8:
        gamma = float(np.exp(rng.normal(0, 0.18)))
        image = cv2.pow(image, gamma)
    mode = rng.random()
    if mode < 0.05:  # green channel alone
        image = np.repeat(image[..., 1:2], 3, axis=2) * rng.uniform(1.2, 2.0)
    elif mode < 0.09:
        image = np.repeat(image @ np.array([[0.3], [0.59], [0.11]], np.float32), 3, axis=2)
    elif mode < 0.3:  # another sensor: channels leak into each other
        mix = np.eye(3, dtype=np.float32) + rng.normal(0, 0.08, (3, 3)).astype(np.float32)
        image = image @ mix
    image = image * np.float32(255.0 * np.exp(rng.normal(0, 0.1)))
    grain = rng.standard_normal((size, size), dtype=np.float32)
    coloured = rng.standard_normal((size // 2, size // 2, 3), dtype=np.float32)
    image += cv2.resize(coloured, (size, size), interpolation=cv2.INTER_LINEAR) * rng.uniform(0.3, 3.0)
    image += grain[..., None] * np.float32(rng.uniform(0.2, 3.0))
    image = to_uint8(image)
    return recompress(rng, image, 55, 95) if rng.random() < 0.6 else image


def draw_fundus(rng: np.random.Generator, size: int, label_dilation_px: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """One fundus photograph.

    Returns:
        (image uint8 ``[size, size, 3]`` RGB, mask uint8 ``[size, size]`` 0/255).
    """
    scene = compose(rng, size)
    image = _background(rng, scene)
    paint_vessels(rng, scene, image)
    _lesions(rng, scene, image)
    if rng.random() < 0.35:
        _fibres(rng, scene, image)
    image = expose(rng, scene, image)
    mask = support_mask(scene.vessels, size, label_dilation_px)[1]
    mask[scene.fov < 0.5] = 0
    return image, mask
