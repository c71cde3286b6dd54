"""Soft targets: area averaging keeps what nearest would lose."""
import numpy as np
import pytest

from sa2va_dpo.datasets.targets import flip, soft_target


def test_area_average_by_hand():
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = mask[0, 1] = mask[1, 0] = True  # three of the four pixels of one 2x2 block
    mask[2:, 2:] = True
    np.testing.assert_array_equal(soft_target(mask, 2), [[191, 0], [0, 255]])


def test_thin_vessel_survives_shrinking():
    mask = np.zeros((512, 512), bool)
    mask[:, 101] = True
    soft = soft_target(mask, 128)
    assert (soft.max(1) > 0).all(), 'the one-pixel vessel must be seen in every row'
    assert soft.sum() / 255 * 16 == pytest.approx(512, rel=0.01), 'area is preserved'


def test_growing_is_not_blocky_and_keeps_solid_areas():
    mask = np.zeros((8, 8), bool)
    mask[:, 4:] = True
    soft = soft_target(mask, 64)
    assert soft.shape == (64, 64) and soft.dtype == np.uint8
    assert (soft[:, :28] == 0).all() and (soft[:, 36:] == 255).all()
    assert len(np.unique(soft)) > 3


def test_axes_that_shrink_and_grow_at_once():
    mask = np.zeros((400, 50), bool)
    mask[:200] = True
    soft = soft_target(mask, 100)
    assert (soft[:50] == 255).all() and (soft[50:] == 0).all()


def test_flip_mirrors_image_and_mask_alike():
    array = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(flip(array, True, False), [[2, 1, 0], [5, 4, 3]])
    np.testing.assert_array_equal(flip(array, False, True), [[3, 4, 5], [0, 1, 2]])
    image = np.stack([array] * 3, -1)
    np.testing.assert_array_equal(flip(image, True, True)[..., 1], flip(array, True, True))
