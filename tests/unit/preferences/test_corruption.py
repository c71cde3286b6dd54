"""Each corruption does its own damage and nothing else."""
import cv2
import numpy as np
import pytest

from sa2va_dpo.evaluation.topology import betti_numbers
from sa2va_dpo.preferences.corruption import (
    branches,
    break_centrelines,
    drop_branches,
    false_branches,
    smooth,
    thicken,
    thin,
)


@pytest.fixture
def tree():
    mask = np.zeros((120, 120), np.uint8)
    for ends in (((60, 110), (60, 60)), ((60, 60), (20, 15)), ((60, 60), (100, 15))):
        cv2.line(mask, *ends, 1, 5)
    return mask.astype(bool)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_three_branches_cover_the_tree(tree):
    labels, count = branches(tree)
    assert count == 3 and np.array_equal(labels > 0, tree)
    sizes = np.bincount(labels[labels > 0])[1:]
    assert sizes.min() > 150


def test_dropped_branch_is_missing_whole(tree):
    dropped = drop_branches(tree, 0.3, rng())
    assert not (dropped & ~tree).any() and 0.5 < dropped.sum() / tree.sum() < 0.85
    labels, _ = branches(tree)
    shares = [dropped[labels == i].mean() for i in (1, 2, 3)]
    assert sorted(shares) == [0, 1, 1]


def test_gaps_break_connections(tree):
    broken = break_centrelines(tree, 4, rng())
    assert not (broken & ~tree).any() and betti_numbers(broken)[0] > 1 and broken.sum() > 0.5 * tree.sum()


def test_false_branches_only_add(tree):
    more = false_branches(tree, 5, rng())
    assert not (tree & ~more).any() and more.sum() > 1.05 * tree.sum() and betti_numbers(more)[0] == 1


def test_thick_and_thin(tree):
    assert not (tree & ~thicken(tree)).any() and thicken(tree, 2).sum() > thicken(tree).sum() > tree.sum()
    thinner = thin(tree, 5)
    assert not (thinner & ~tree).any() and 0 < thinner.sum() < thin(tree).sum() < tree.sum()
    assert betti_numbers(thinner)[0] == 1  # the centreline stays in one piece


def test_smooth_removes_specks(tree):
    noisy = tree.copy()
    noisy[5, 5] = True
    assert not smooth(noisy)[5, 5]


@pytest.mark.parametrize('change', [thicken, thin, smooth, lambda m: drop_branches(m, 0.3, rng()),
                                    lambda m: break_centrelines(m, 3, rng()), lambda m: false_branches(m, 3, rng())])
@pytest.mark.parametrize('mask', [np.zeros((9, 9), bool), np.eye(9, dtype=bool) & (np.arange(9) == 4)])
def test_empty_masks_and_single_pixels(change, mask):
    changed = change(mask.copy())
    assert changed.dtype == bool and changed.shape == mask.shape
    assert mask.any() or not changed.any()


def test_same_stream_same_damage(tree):
    for change, amount in ((drop_branches, 0.3), (break_centrelines, 4), (false_branches, 4)):
        assert np.array_equal(change(tree, amount, rng(3)), change(tree, amount, rng(3)))
    assert not np.array_equal(false_branches(tree, 4, rng(1)), false_branches(tree, 4, rng(2)))
