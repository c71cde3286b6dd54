"""Sheets of images and masks: which images, and the right colours in the right places."""
from __future__ import annotations

import numpy as np
import pytest

from sa2va_dpo.evaluation.overlay import BLUE, GREY, ORANGE
from sa2va_dpo.evaluation.sheet import FAINT, GAP, LINE, TILE, Case, case_sheet, pair_sheet, spread


@pytest.mark.parametrize('count, expected', [(1, [2]), (2, [2, 0]), (3, [2, 3, 0]), (5, [2, 4, 3, 1, 0]),
                                             (9, [2, 4, 3, 1, 0])])
def test_spread_goes_from_the_worst_to_the_best(count, expected):
    assert spread([0.9, 0.4, -0.5, 0.2, 0.1], count) == expected


def quarters() -> Case:
    """Truth in the upper half; before in the left half, after in the upper right quarter and the lower left."""
    truth, before, after = (np.zeros((TILE, TILE), bool) for _ in range(3))
    half = TILE // 2
    truth[:half] = before[:, :half] = after[:half, half:] = after[half:, :half] = True
    return Case('case', np.full((TILE, TILE, 3), 60, np.uint8), truth, after, before)


def at(sheet: np.ndarray, column: int, y: float, x: float) -> np.ndarray:
    """The colour in a tile, places from 0 to 1."""
    top = 2 * LINE
    return sheet[round(top + y * TILE), round(GAP + column * (TILE + GAP) + x * TILE)].astype(int)


def near(colour, expected) -> bool:
    return bool(np.abs(np.asarray(colour) - expected).max() < 45)


def test_columns_show_errors_and_what_changed():
    sheet = case_sheet([quarters()])
    assert sheet.dtype == np.uint8 and sheet.shape == (2 * LINE + GAP + TILE + LINE + GAP, 5 * (TILE + GAP) + GAP, 3)
    upper_left, upper_right, lower_left, lower_right = (.25, .25), (.25, .75), (.75, .25), (.75, .75)
    assert near(at(sheet, 1, *upper_left), (255,) * 3) and near(at(sheet, 1, *lower_left), (0,) * 3)
    for place, before, after, change in (
            (upper_left, GREY, BLUE, ORANGE),  # found, then missed: lost
            (upper_right, BLUE, GREY, BLUE),  # missed, then found: gained
            (lower_left, ORANGE, ORANGE, FAINT)):  # extra both times
        assert near(at(sheet, 2, *place), before) and near(at(sheet, 3, *place), after)
        assert near(at(sheet, 4, *place), change)
    assert all(near(at(sheet, column, *lower_right), (27,) * 3) for column in (2, 3, 4))


def test_outside_the_field_of_view_nothing_is_drawn_or_scored():
    case = quarters()
    field = np.zeros_like(case.truth)
    field[:, TILE // 2:] = True
    inside = Case(case.name, case.image, case.truth, case.after, case.before, field)
    assert inside.dice(case.after) == 1 and inside.dice(case.before) == 0
    sheet = case_sheet([inside])
    assert all(near(at(sheet, column, .25, .25), (27,) * 3) for column in (2, 3, 4))


def test_without_a_before_there_are_three_columns():
    case = quarters()
    sheet = case_sheet([case, Case('other', case.image, case.truth, case.truth)])
    assert sheet.shape[1] == 3 * (TILE + GAP) + GAP and near(at(sheet, 2, .75, .25), ORANGE)


def test_images_of_other_shapes_keep_their_proportions():
    wide = np.zeros((100, 400), bool)
    sheet = case_sheet([Case('x' * 200, np.zeros((100, 400, 3), np.uint8), wide, ~wide, wide)])
    assert sheet.shape[0] == 2 * LINE + GAP + TILE // 4 + LINE + GAP
    assert near(at(sheet, 3, .1, .01), ORANGE)


def test_pairs():
    chosen, rejected = np.zeros((2, 50, 50), bool)
    chosen[:, :30], rejected[:, 20:] = True, True
    sheet = pair_sheet([('a', np.full((50, 50, 3), 60, np.uint8), chosen, rejected, 'IoU 0.80', 'IoU 0.60')])
    assert near(at(sheet, 3, .5, .2), BLUE) and near(at(sheet, 3, .5, .5), GREY) and near(at(sheet, 3, .5, .8), ORANGE)
    assert near(at(sheet, 1, .5, .2), (255,) * 3) and near(at(sheet, 2, .5, .2), (0,) * 3)


def test_what_cannot_be_drawn_is_refused():
    case = quarters()
    with pytest.raises(ValueError, match='nothing to draw'):
        case_sheet([])
    with pytest.raises(ValueError, match='one shape'):
        case_sheet([Case('case', case.image, case.truth, case.after[:10])])
