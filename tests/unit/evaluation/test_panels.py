"""The row of pictures of a validation image, pixel by pixel."""
import numpy as np
import pytest

from sa2va_dpo.evaluation.overlay import BLUE, FAINT, GREY, ORANGE
from sa2va_dpo.evaluation.panels import panels

SIDE, GAP = 320, 6  # masks of 320 px are neither enlarged nor made smaller


def colour_of(row, panel, y, x):
    return tuple(row[y, panel * (SIDE + GAP) + x])


def painted(colour):
    """On black, with the overlays' opacity."""
    return tuple((0.9 * np.array(colour)).astype(np.uint8))


def masks(*points):
    mask = np.zeros((SIDE, SIDE), bool)
    for y, x in points:
        mask[y, x] = True
    return mask


HIT, EXTRA, MISS, HEALED = (10, 10), (20, 20), (30, 30), (40, 40)
IMAGE = np.zeros((SIDE, SIDE, 3), np.uint8)


def test_each_panel_says_what_its_legend_says():
    target, pred, start = masks(HIT, MISS, HEALED), masks(HIT, EXTRA, HEALED), masks(HIT, MISS)
    row = panels(IMAGE, pred, target, start)
    assert row.shape[1] == 5 * SIDE + 4 * GAP and row.dtype == np.uint8
    assert colour_of(row, 1, *MISS) == painted(GREY) and colour_of(row, 2, *MISS) == (0, 0, 0)
    assert colour_of(row, 2, *EXTRA) == painted(GREY)
    assert [colour_of(row, 3, *point) for point in (HIT, EXTRA, MISS)] == [
        painted(GREY), painted(ORANGE), painted(BLUE)]
    # Right now and wrong before is blue, the other way round orange, found as before faint.
    assert [colour_of(row, 4, *point) for point in (HEALED, MISS, EXTRA, HIT)] == [
        painted(BLUE), painted(ORANGE), painted(ORANGE), painted(FAINT)]
    assert np.array_equal(panels(IMAGE, pred, target), row[:, :4 * (SIDE + GAP) - GAP])


def test_nothing_is_drawn_where_nothing_is_scored():
    field = np.ones((SIDE, SIDE), bool)
    field[20, 20] = False
    row = panels(IMAGE, masks(EXTRA), masks(EXTRA), masks(), field)
    assert all(colour_of(row, panel, *EXTRA) == (0, 0, 0) for panel in (1, 2, 3, 4))


@pytest.mark.parametrize('height, width', [(2000, 1000), (1, 3000), (64, 48)])
@pytest.mark.parametrize('grey', [True, False])
def test_the_size_is_bounded_whatever_the_image(height, width, grey):
    mask = np.ones((height, width), bool)
    row = panels(np.zeros((height, width) if grey else (height // 2 + 1, width, 3), np.uint8), mask, mask, mask)
    assert row.shape[1] <= 5 * 480 + 4 * 6 and row.shape[0] <= 480 + 80


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError):
        panels(IMAGE, masks(HIT), masks(HIT)[:10])
    with pytest.raises(ValueError, match='8-bit|uint8'):
        panels(IMAGE.astype(float), masks(HIT), masks(HIT))
