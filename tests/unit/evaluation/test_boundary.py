"""Boundary distances by hand and against brute force."""
from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from sa2va_dpo.evaluation.boundary import boundary_distance


def test_parallel_lines_by_hand():
    """Two lines 4 pixels apart: every boundary pixel is 4 from the other."""
    pred, target = np.zeros((9, 20), bool), np.zeros((9, 20), bool)
    pred[2], target[6] = True, True
    distance = boundary_distance(pred, target)
    assert distance.mean == 4 and distance.hd95 == 4


def test_one_far_speck_moves_the_mean_little_and_hd95_not():
    """100 boundary pixels in place and one 10 away: mean 10 / 201, and 1 % does not reach the 95th percentile."""
    target = np.zeros((30, 100), bool)
    target[5] = True
    pred = target.copy()
    pred[15, 50] = True
    distance = boundary_distance(pred, target)
    assert distance.mean == pytest.approx(10 / 201)
    assert distance.hd95 == 0


@pytest.mark.parametrize('seed', range(10))
def test_equals_brute_force(seed):
    """All boundary pixels by loops, all distances by cdist."""
    generator = np.random.default_rng(seed)
    pred, target = (generator.random((14, 17)) < .3 for _ in range(2))

    def edge(mask):
        get = lambda r, c: 0 <= r < mask.shape[0] and 0 <= c < mask.shape[1] and mask[r, c]  # noqa: E731
        return np.array([(r, c) for r, c in np.argwhere(mask)
                         if not all(get(r + dr, c + dc) for dr, dc in ((1, 0), (-1, 0), (0, 1), (0, -1)))])

    table = cdist(edge(pred), edge(target))
    there, back = table.min(1), table.min(0)
    distance = boundary_distance(pred, target)
    assert distance.mean == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)
    assert distance.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)


def test_empty_and_full_masks():
    """The image is 3 x 4: its diagonal is 5."""
    empty, full = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    assert boundary_distance(empty, empty).mean == boundary_distance(full, full).mean == 0
    for distance in (boundary_distance(empty, full), boundary_distance(full, empty)):
        assert distance.mean == distance.hd95 == 5
