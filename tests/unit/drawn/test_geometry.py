"""Trees, views and rasters of drawn vessels."""
import math

import numpy as np
import pytest

from sa2va_dpo.drawn.vessel_tree import (
    ARTERY,
    FIELD,
    MIN_SUPPORT,
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


def straight(points, width, kind=ARTERY):
    points = np.asarray(points, np.float32)
    return Path(points, np.full(len(points), width, np.float32), kind, 0)


def test_a_horizontal_bar_covers_its_width():
    bar = Projected(np.array([[10.0, 32.0], [50.0, 32.0]]), np.full(2, 5.0), np.ones(2), ARTERY)
    coverage, mask = support_mask([bar], 64)
    column = coverage[:, 30]
    assert column.sum() == pytest.approx(5.0, abs=0.3)
    assert (column * np.arange(64)).sum() / column.sum() == pytest.approx(32.0, abs=0.15)
    assert (mask[:, 30] > 0).sum() == 5
    assert set(np.unique(mask)) == {0, 255}


def test_label_dilation_widens_the_label_by_that_many_pixels_a_side():
    bar = Projected(np.array([[10.0, 32.0], [50.0, 32.0]]), np.full(2, 5.0), np.ones(2), ARTERY)
    assert (support_mask([bar], 64, 2.0)[1][:, 30] > 0).sum() == 9


def test_mask_is_coverage_above_one_half():
    rng = np.random.default_rng(0)
    bars = [
        Projected(rng.uniform(5, 59, (2, 2)), np.full(2, rng.uniform(1.3, 6)), np.ones(2), ARTERY) for _ in range(6)
    ]
    coverage, mask = support_mask(bars, 64)
    assert np.array_equal(mask > 0, coverage > 0.5)
    assert ((coverage > 0) & (coverage < 1)).any()


def test_sub_pixel_vessels_keep_a_connected_support_and_get_fainter():
    path = straight([[20.0 + i, 40.3 + 0.3 * i] for i in range(0, 400, 4)], 0.5)
    view = View.of(512)
    drawn, = project([path], view, 512, lambda width, path: np.ones_like(width))
    assert drawn.width.min() == pytest.approx(MIN_SUPPORT)
    assert drawn.opacity.max() == pytest.approx(0.5 / MIN_SUPPORT, rel=1e-5)
    from scipy.ndimage import label
    assert label(support_mask([drawn], 512)[1], np.ones((3, 3)))[1] == 1


def test_squeezed_view_narrows_vessels_across_the_squeezed_axis_only():
    view = View.of(512, 0.5, 1.0)
    along_y, along_x = (
        straight([[100, 100], [100, 104], [100, 108]], 8),
        straight([[100, 100], [104, 100], [108, 100]], 8),
    )
    assert np.allclose(view.widths(along_y.points, along_y.width), 4.0)
    assert np.allclose(view.widths(along_x.points, along_x.width), 8.0)
    assert np.allclose(view.points([FIELD / 2, FIELD / 2]), 255.5)


def test_half_the_size_halves_points_and_widths():
    full, half = View.of(512, 1.1, 0.9, (250, 260), 0.2), View.of(256, 1.1, 0.9, (250, 260), 0.2)
    points = np.random.default_rng(1).uniform(0, 512, (5, 2))
    assert np.allclose((full.points(points) + 0.5) / 2, half.points(points) + 0.5)


def test_rounded_profile_is_darkest_in_the_middle():
    bar = Projected(np.array([[10.0, 32.0], [50.0, 32.0]]), np.full(2, 8.0), np.full(2, 0.8), ARTERY)
    column = rasterise([bar], 64, ((1.0, 0.5), (0.5, 1.0)))[:, 30]
    assert column[32] == pytest.approx(0.8, abs=0.04)
    assert column[29] == pytest.approx(0.4, abs=0.04)


def test_growth_keeps_murrays_law_at_every_branching():
    growth = Growth(taper=0.0, murray=3.0, cell=0.0, twig=0.0)
    paths = grow(np.random.default_rng(2), [Root(256, 0, math.pi / 2, 12.0)], growth,
                 lambda x, y, h, w, level, kind, tag: (h, 0.0) if y < 500 else None, 9000.0, lambda x, y: True)
    assert len(paths) > 3
    checked = 0
    for child in paths[1:]:
        for parent in paths:
            at = np.flatnonzero((parent.points == child.points[0]).all(1))
            if parent.level == child.level - 1 and 0 < len(at) and 0 < at[0] < len(parent.width) - 1:
                before, after = parent.width[at[0]], parent.width[at[0] + 1]
                assert after ** 3 + child.width[0] ** 3 == pytest.approx(before ** 3, rel=1e-3)
                checked += 1
    assert checked >= 3


def test_no_vessel_is_begun_once_the_area_is_covered():
    def covered(area):
        paths = grow(np.random.default_rng(3), [Root(256, 0, math.pi / 2, 5.0)], Growth(cell=0.0, reach=20.0),
                     lambda x, y, h, w, level, kind, tag: (h, 0.0), area, lambda x, y: True)
        return [4.0 * float(path.width[1:].sum()) for path in paths]

    for area in (1100.0, 1400.0):
        parts = covered(area)
        assert sum(parts) >= area > sum(parts[:-1])
