"""clDice and Betti numbers by hand, against the Euler number, and by order."""
from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import euler_number
from skimage.morphology import skeletonize

from sa2va_dpo.evaluation.counts import confusion_counts, dice
from sa2va_dpo.evaluation.topology import betti_errors, betti_numbers, cldice


def drawing(*rows: str) -> np.ndarray:
    return np.array([[cell == '#' for cell in row] for row in rows])


RING = drawing('.....', '.###.', '.#.#.', '.###.', '.....')


@pytest.mark.parametrize('mask, expected', [
    (drawing('....', '....'), (0, 0)),
    (drawing('####', '####'), (1, 0)),
    (drawing('#.#', '...', '#.#'), (4, 0)),
    (RING, (1, 1)),
    (drawing('#..', '.#.', '..#'), (1, 0)),               # diagonal contact joins the foreground
    (drawing('.#.', '#.#', '.#.'), (1, 1)),               # a diagonal ring encloses its middle
    (drawing('###', '#..', '###'), (1, 0)),               # open to the border: no hole
    (drawing('#####', '#.#.#', '#####'), (1, 2)),         # an eight
    (drawing('######', '#.##.#', '##..##', '######'), (1, 3)),  # holes do not join over a diagonal
    (drawing('#######', '#.....#', '#.###.#', '#.#.#.#', '#.###.#', '#.....#', '#######'), (2, 2)),  # nested rings
])
def test_betti_numbers_by_hand(mask, expected):
    assert betti_numbers(mask) == expected


@pytest.mark.parametrize('seed', range(30))
def test_betti_numbers_agree_with_the_euler_number(seed):
    generator = np.random.default_rng(seed)
    mask = generator.random((generator.integers(1, 40), generator.integers(1, 40))) < generator.random()
    b0, b1 = betti_numbers(mask)
    assert b0 - b1 == euler_number(mask, connectivity=2)


def test_betti_errors_by_hand():
    """A ring cut open: same component, hole lost. A ring with an extra dot: one component more."""
    cut, dotted = RING.copy(), RING.copy()
    cut[1, 2] = False
    dotted[0, 0] = False
    dotted = np.pad(dotted, 1)
    dotted[0, 0] = True
    assert betti_errors(cut, RING) == (0, 1)
    assert betti_errors(dotted, np.pad(RING, 1)) == (1, 0)
    assert betti_errors(np.zeros_like(RING), RING) == (1, 1)


def test_cldice_by_hand():
    """Lines of one pixel are their own skeletons. Target 8 pixels long, prediction its left 4 and 1 astray.

    Topology precision 4/5, sensitivity 4/8: clDice = 2 * 0.8 * 0.5 / 1.3.
    """
    target, pred = np.zeros((5, 12), bool), np.zeros((5, 12), bool)
    target[2, 2:10] = True
    pred[2, 2:6] = True
    pred[0, 11] = True
    assert cldice(pred, target) == pytest.approx(2 * .8 * .5 / 1.3)


def test_cldice_forgives_thickness_that_dice_does_not():
    """A vessel three times too thick: Dice 2 * 1/(1 + 3). Its skeleton is the centreline, one pixel shorter at one end
    and with one pixel astray at the other: precision 38/39, sensitivity 1, clDice 76/77.
    """
    target, pred = np.zeros((21, 40), bool), np.zeros((21, 40), bool)
    target[10] = True
    pred[9:12] = True
    assert dice(confusion_counts(pred, target)) == pytest.approx(0.5)
    assert cldice(pred, target) == pytest.approx(76 / 77)


def test_cldice_is_the_formula_on_whole_image_skeletons():
    """The bounding box that the implementation works on must not change the skeleton."""
    generator = np.random.default_rng(0)
    pred, target = np.zeros((60, 70), bool), np.zeros((60, 70), bool)
    for mask in (pred, target):
        for _ in range(4):
            row, column = generator.integers(5, 40, 2)
            mask[row:row + generator.integers(2, 15), column:column + generator.integers(2, 25)] = True
    pred_skeleton, target_skeleton = skeletonize(pred), skeletonize(target)
    precision = (pred_skeleton & target).sum() / pred_skeleton.sum()
    sensitivity = (target_skeleton & pred).sum() / target_skeleton.sum()
    assert cldice(pred, target) == pytest.approx(2 * precision * sensitivity / (precision + sensitivity))


def test_cldice_of_empty_masks():
    empty, dot, far = np.zeros((6, 6), bool), np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    dot[1, 1] = far[4, 4] = True
    assert cldice(empty, empty) == 1
    assert cldice(empty, dot) == cldice(dot, empty) == 0
    assert cldice(dot, far) == 0
    assert cldice(dot, dot) == 1


def test_a_broken_tree_scores_below_a_whole_one():
    tree = np.zeros((64, 64), bool)
    tree[30:34, :] = True
    tree[:, 20:23] = True
    broken = tree.copy()
    broken[10:26, 20:23] = False
    assert cldice(tree, tree) == 1 > cldice(broken, tree) > cldice(np.rot90(tree).copy(), tree)


def test_bad_masks_are_refused():
    with pytest.raises(ValueError, match='bool'):
        betti_numbers(RING.astype(int))
    with pytest.raises(ValueError, match='one shape'):
        cldice(RING, RING[1:])
