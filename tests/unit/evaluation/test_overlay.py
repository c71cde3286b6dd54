"""Overlay pictures: right colours in the right places, legible whatever the image."""
from __future__ import annotations

import itertools

import numpy as np
import pytest

from sa2va_dpo.evaluation.overlay import FALSE_NEGATIVE, FALSE_POSITIVE, TRUE_POSITIVE, overlay

SIZE = 400
PRED, TARGET = np.zeros((SIZE, SIZE), bool), np.zeros((SIZE, SIZE), bool)
PRED[:, :200] = True
TARGET[:200] = True
# One pixel in each quadrant.
PLACES = dict(tp=(50, 50), fp=(300, 50), fn=(50, 300), tn=(300, 300))


def distance(a, b) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max())


@pytest.mark.parametrize('colour', [(0, 0, 0), (255, 255, 255), (200, 30, 10), (20, 220, 60), (60, 120, 250)])
def test_regions_are_told_apart_on_any_image(colour):
    """Black, white and images in the overlay's own colours: each region is near its colour and far from the rest."""
    picture = overlay(np.full((SIZE, SIZE, 3), colour, np.uint8), PRED, TARGET)
    seen = {name: picture[place] for name, place in PLACES.items()}
    for name, expected in (('tp', TRUE_POSITIVE), ('fp', FALSE_POSITIVE), ('fn', FALSE_NEGATIVE)):
        assert distance(seen[name], expected) < 45, name
    for one, other in itertools.combinations(seen, 2):
        assert distance(seen[one], seen[other]) > 80, (one, other)


def test_the_background_is_dark_grey_even_where_the_image_is_white():
    picture = overlay(np.full((SIZE, SIZE, 3), 255, np.uint8), PRED, TARGET)
    background = picture[PLACES['tn']]
    assert len(set(background.tolist())) == 1 and 60 < background[0] < 160


def test_a_legend_strip_with_all_three_colours_lies_below():
    picture = overlay(np.full((SIZE, SIZE, 3), 90, np.uint8), np.zeros_like(PRED), np.zeros_like(PRED))
    assert picture.dtype == np.uint8 and picture.shape[1:] == (SIZE, 3)
    strip = picture[SIZE:]
    assert 10 < len(strip) < 60
    for colour in (TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE):
        assert (strip == colour).all(-1).sum() > 50
    assert (strip > 200).all(-1).any()  # text
    assert not (strip[:, -3:] > 100).any(), 'the legend runs over the edge'


def test_caption_is_drawn_and_fits():
    blank = np.zeros((SIZE, SIZE), np.uint8)
    without, with_caption = overlay(blank, PRED, TARGET), overlay(blank, PRED, TARGET, caption='Dice 0.123')
    assert (with_caption[SIZE:, 300:] > 150).sum() > (without[SIZE:, 300:] > 150).sum()


def test_large_pictures_shrink_and_small_ones_grow():
    large = overlay(np.zeros((900, 1800, 3), np.uint8), np.ones((900, 1800), bool), np.ones((900, 1800), bool),
                    max_side=600)
    assert large.shape[1] == 600 and large[:300].shape[0] == 300 and distance(large[150, 300], TRUE_POSITIVE) < 45
    small = overlay(np.zeros((20, 32), np.uint8), np.ones((20, 32), bool), np.zeros((20, 32), bool))
    assert small.shape[1] == 320 and distance(small[199, 319], FALSE_POSITIVE) < 45


def test_an_image_of_another_size_is_fitted_to_the_masks():
    picture = overlay(np.full((100, 80, 3), 200, np.uint8), PRED, TARGET)
    assert picture.shape[1] == SIZE


def test_the_image_given_is_not_changed():
    image = np.full((SIZE, SIZE), 77, np.uint8)
    overlay(image, PRED, TARGET)
    assert (image == 77).all()


@pytest.mark.parametrize('image', [np.zeros((SIZE, SIZE, 3)), np.zeros((SIZE, SIZE, 4), np.uint8),
                                   np.zeros(SIZE, np.uint8)])
def test_bad_images_are_refused(image):
    with pytest.raises(ValueError, match='uint8'):
        overlay(image, PRED, TARGET)
