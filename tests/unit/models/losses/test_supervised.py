"""The supervised term and the soft skeleton by hand, against scipy, by finite differences, at the edges."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from sa2va_dpo.models.losses import soft_cldice, soft_dice, soft_skeleton, supervised, supervised_term

from .cases import image, random_case


def test_supervised_term_by_hand():
    """z = 0, y = (1, 0): BCE log 2, 1 - Dice 1/3; weights 2 and 0.5."""
    loss = supervised_term(image([0., 0.]), image([1., 0.]), bce_weight=2, dice_weight=.5)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(2 * math.log(2) + .5 / 3)


def test_soft_skeleton_of_a_thick_bar_is_its_centreline():
    """A bar of three rows crossing the frame: the soft skeleton is its middle row, as the hard one."""
    mask = torch.zeros(1, 9, 12)
    mask[:, 3:6] = 1
    expected = torch.zeros(1, 9, 12)
    expected[:, 4] = 1
    torch.testing.assert_close(soft_skeleton(mask, 4), expected)


def test_soft_skeleton_of_soft_values_by_hand():
    """One row (1/2, 1, 1/2) in the middle of zeros: round 0 removes the row as it is (the opening is 0), the eroded
    image is 0 and adds nothing. Two stacked rounds combine as a + b - ab: a wide soft bar never exceeds 1.
    """
    row = torch.zeros(1, 5, 3)
    row[0, 2] = torch.tensor([.5, 1., .5])
    torch.testing.assert_close(soft_skeleton(row, 3), row)
    # Columns 0.6, 0.8, 0.6 across 3 rows: round 0 removes 0 at the sides and 0.8 - 0.6 = 0.2 in the middle; the
    # erosion leaves 0.6 in the middle only, all of which round 1 removes: 0.2 + 0.6 - 0.12 = 0.68.
    bar = torch.zeros(1, 5, 9)
    bar[0, 1:4] = torch.tensor([.6, .8, .6])[:, None]
    expected = torch.zeros(1, 5, 9)
    expected[0, 2] = .68
    torch.testing.assert_close(soft_skeleton(bar, 3), expected)


def test_soft_skeleton_is_the_same_with_and_without_gradient_and_as_scipys_grey_morphology():
    from scipy import ndimage

    image = torch.rand(3, 11, 14, generator=torch.Generator().manual_seed(0))
    without = soft_skeleton(image, 3)
    assert torch.equal(without, soft_skeleton(image.clone().requires_grad_(), 3).detach())
    cross = ndimage.generate_binary_structure(2, 1)
    for i in range(3):
        x, expected = image[i].numpy(), np.zeros((11, 14), np.float32)
        for _ in range(4):
            eroded = ndimage.grey_erosion(x, footprint=cross, mode='nearest')
            removed = np.maximum(x - ndimage.grey_dilation(eroded, footprint=np.ones((3, 3)), mode='nearest'), 0)
            expected, x = expected + removed - expected * removed, eroded
        np.testing.assert_allclose(without[i].numpy(), expected, atol=1e-6)


def test_soft_cldice_sees_a_gap_that_dice_does_not():
    """A cut of one pixel width costs Dice and clDice little, a lost thin branch costs clDice more than Dice."""
    target = torch.zeros(1, 32, 32)
    target[:, 4:12, :] = 1
    target[:, 24, :] = 1
    thin_lost, edge_lost = target.clone(), target.clone()
    thin_lost[:, 24, :] = 0
    edge_lost[:, 4, :] = 0
    to_logits = lambda mask: 40 * mask - 20  # noqa: E731
    dice = [soft_dice(to_logits(m), target).item() for m in (thin_lost, edge_lost)]
    cldice = [soft_cldice(to_logits(m), target).item() for m in (thin_lost, edge_lost)]
    assert dice[0] == pytest.approx(dice[1], abs=1e-4)
    assert cldice[0] < 0.85 < 0.95 < cldice[1]


@pytest.mark.parametrize('weights', [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, .5)])
def test_finite_differences_of_the_supervised_term(weights):
    logits, _, target, _ = random_case(5, pairs=2, size=6, soft=True)
    names = ('bce_weight', 'dice_weight', 'cldice_weight')
    assert gradcheck(lambda z: supervised_term(z, target, **dict(zip(names, weights)), cldice_iterations=2),
                     logits.requires_grad_())


@pytest.mark.parametrize('weights', [dict(bce_weight=1, dice_weight=0), dict(bce_weight=0, dice_weight=1),
                                     dict(bce_weight=0, dice_weight=0, cldice_weight=1)])
def test_better_logits_have_a_lower_supervised_loss(weights):
    target = torch.zeros(1, 16, 16)
    target[:, 5:9, 2:14] = 1
    target[:, 5:, 7:9] = 1
    shifted = target.roll(3, dims=1)
    good, poor, bad = (supervised_term(6 * (2 * mask - 1), target, **weights).item()
                       for mask in (target, shifted, 1 - target))
    assert good < poor < bad


@pytest.mark.parametrize('mask', [torch.zeros(1, 8, 8), torch.ones(1, 8, 8)], ids=['empty', 'full'])
def test_supervised_term_of_empty_and_full_masks(mask):
    """Confident and right: about 0. Confident and wrong: large but finite, with a finite gradient."""
    right = supervised_term(60 * (2 * mask - 1), mask, cldice_weight=1)
    wrong_logits = (-60 * (2 * mask - 1)).requires_grad_()
    wrong = supervised_term(wrong_logits, mask, cldice_weight=1)
    wrong.sum().backward()
    assert right.item() == pytest.approx(0, abs=1e-5) and 60 < wrong.item() < 63
    assert torch.isfinite(wrong_logits.grad).all()


def test_skeletons_of_repeated_targets_are_computed_once_and_are_the_same(monkeypatch):
    masks = (torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(7)) > .4).float()
    targets = masks[[1, 0, 1, 2, 0]]
    logits = torch.randn(5, 12, 12, generator=torch.Generator().manual_seed(8))
    expected = torch.cat([soft_cldice(z[None], y[None]) for z, y in zip(logits, targets)])
    computed, skeleton = [], soft_skeleton
    monkeypatch.setattr(supervised, 'soft_skeleton',
                        lambda image, n: computed.append(len(image)) or skeleton(image, n))
    torch.testing.assert_close(soft_cldice(logits, targets), expected)
    assert computed == [5, 3]


def test_a_skeleton_ends_early_with_the_values_of_all_rounds():
    mask = torch.zeros(1, 20, 20)
    mask[0, 8:11, :] = 1
    mask[0, 3:10, 4:9] = .5
    full = soft_skeleton(mask.clone().requires_grad_(), 30).detach()  # goes through every round
    assert torch.equal(soft_skeleton(mask, 30), full) and full.sum() > 0
    assert torch.equal(soft_skeleton(torch.zeros(1, 4, 4), 30), torch.zeros(1, 4, 4))


def test_supervised_gradient_with_image_index_equals_repeated_logits():
    logits, _, target, _ = random_case(23, size=8)
    index = torch.tensor([1, 0, 1])
    shared, repeated = logits[:2].clone().requires_grad_(), logits[:2].clone().requires_grad_()
    one = supervised_term(shared, target, cldice_weight=1., cldice_iterations=3, image_index=index)
    two = supervised_term(repeated[index], target, cldice_weight=1., cldice_iterations=3)
    one.sum().backward()
    two.sum().backward()
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(shared.grad, repeated.grad)
