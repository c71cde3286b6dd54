"""Preference losses by hand-worked numbers, against TRL's formulas, by finite differences, and at the edges."""
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from sa2va_dpo.models.losses import objective as pl
from sa2va_dpo.models.losses.objective import PreferenceConfig, combined_loss, preference_loss

REDUCTIONS = ('mean', 'sum', 'disagreement', 'balanced')
# Every (loss, reduction) that is supported, with the label smoothing that the loss needs.
COMBINATIONS = ([(loss, reduction, smoothing) for loss, smoothing in (('sigmoid', 0.0), ('sigmoid', 0.1),
                                                                      ('robust', 0.1), ('hinge', 0.0))
                 for reduction in REDUCTIONS]
                + [('ipo', reduction, 0.0) for reduction in ('mean', 'disagreement', 'balanced')]
                + [('dice', 'mean', 0.0), ('dice', 'mean', 0.1)])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def image(*rows) -> torch.Tensor:
    """One pair's map as float64 [1, H, W]."""
    return torch.tensor(rows, dtype=torch.float64)[None]


def random_case(seed: int, pairs: int = 3, size: int = 5, soft: bool = False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(2, pairs, size, size, generator=generator, dtype=torch.float64)
    masks = draw if soft else (draw > 0.6).double()
    logits, reference = 3 * torch.randn(2, pairs, size, size, generator=generator, dtype=torch.float64)
    return logits.to(dtype), reference.to(dtype), masks[0].to(dtype), masks[1].to(dtype)


# The example of the docstrings: z = (2, -1), y_w = (1, 0), y_l = (0, 1).
Z, WIN, LOSE = image([2., -1.]), image([1., 0.]), image([0., 1.])


# --- hand-worked numbers --------------------------------------------------------------------------------------------


def test_mask_log_prob_by_hand():
    """z = 0: every pixel has log(1/2), whatever the mask; z = (2, -1), y = (1, 0): log s(2) + log s(1)."""
    zero = torch.zeros(1, 2, 2)
    mask = torch.tensor([[[1., 0.], [0., 1.]]])
    assert pl.mask_log_prob(zero, mask).item() == pytest.approx(-0.693147, abs=1e-6)
    assert pl.mask_log_prob(zero, mask, 'sum').item() == pytest.approx(-2.772589, abs=1e-6)
    expected = math.log(sigmoid(2)) + math.log(sigmoid(1))
    assert pl.mask_log_prob(Z, WIN, 'sum').item() == pytest.approx(expected)
    assert pl.mask_log_prob(Z, WIN, 'mean').item() == pytest.approx(expected / 2)


def test_guide_formula_of_mask_log_prob():
    """sum_i (y_i log p_i + (1 - y_i) log(1 - p_i)) / N, written out with probabilities."""
    logits, _, mask, _ = random_case(0, soft=True)
    p = 1 / (1 + torch.exp(-logits))
    n = logits[0].numel()
    expected = (mask * torch.log(p) + (1 - mask) * torch.log(1 - p)).flatten(1).sum(1) / n
    torch.testing.assert_close(pl.mask_log_prob(logits, mask), expected)


def test_regional_log_prob_by_hand():
    """Four pixels z = (1, 2, 3, 4), mask (1, 1, 0, 0); the rejected mask is (0, 0, 0, 1), so D+ = {0, 1}, D- = {3}.

    l = (log s(1), log s(2), -, log s(-4)); disagreement: their mean over 3 pixels; balanced: the mean of
    (l0 + l1) / 2 and l3.
    """
    z, mask, region = image([1., 2., 3., 4.]), image([1., 1., 0., 0.]), image([1., 1., 0., -1.])
    l0, l1, l3 = (math.log(sigmoid(v)) for v in (1, 2, -4))
    assert pl.mask_log_prob(z, mask, 'disagreement', region).item() == pytest.approx((l0 + l1 + l3) / 3)
    assert pl.mask_log_prob(z, mask, 'balanced', region).item() == pytest.approx(((l0 + l1) / 2 + l3) / 2)


def test_margin_by_hand():
    """Same four pixels: sum s z = 1 + 2 - 4 = -1; /4, /3; balanced ((1 + 2)/2 + (-4))/2 = -1.25."""
    z, win, lose = image([1., 2., 3., 4.]), image([1., 1., 0., 0.]), image([0., 0., 0., 1.])
    expected = dict(sum=-1., mean=-0.25, disagreement=-1 / 3, balanced=-1.25)
    for reduction, value in expected.items():
        assert pl.log_ratio_margin(z, win, lose, reduction=reduction).item() == pytest.approx(value)


def test_balanced_uses_the_one_region_that_is_not_empty():
    """Rejected inside chosen: D- is empty, the margin is the plain average over D+ = (2 + 5)/2, not half of it."""
    z, win, lose = image([2., 5., 1.]), image([1., 1., 1.]), image([0., 0., 1.])
    assert pl.log_ratio_margin(z, win, lose, reduction='balanced').item() == pytest.approx(3.5)
    assert pl.log_ratio_margin(z, lose, win, reduction='balanced').item() == pytest.approx(-3.5)


def test_soft_masks_weigh_regions_by_coverage():
    """s = (0.5, -0.25): |D| = 0.75. z = (2, 4): sum 1 - 1 = 0; balanced (2 - 4)/2 = -1."""
    z, win, lose = image([2., 4.]), image([0.75, 0.25]), image([0.25, 0.5])
    assert pl.log_ratio_margin(z, win, lose, reduction='disagreement').item() == pytest.approx(0)
    assert pl.log_ratio_margin(z, win, lose, reduction='balanced').item() == pytest.approx(-1)


def test_loss_and_rewards_by_hand():
    """h = 1.5; -log s(0.15) = 0.62096; chosen 0.1 (log s(2) + log s(1))/2; rejected 0.1 (log s(-2) + log s(-1))/2."""
    out = preference_loss(Z, WIN, LOSE)
    assert out.loss.item() == pytest.approx(0.620957, abs=1e-6)
    assert out.chosen_rewards.item() == pytest.approx(-0.022009, abs=1e-6)
    assert out.rejected_rewards.item() == pytest.approx(-0.172009, abs=1e-6)
    assert out.margin.item() == pytest.approx(0.15)
    assert out.accuracy.item() == 1


def test_every_loss_by_hand():
    """u = beta h = 0.15 and h = 1.5 of the example; e = 0.1."""
    right, flipped = -math.log(sigmoid(.15)), -math.log(sigmoid(-.15))
    expected = {('sigmoid', 0.): right, ('sigmoid', .1): .9 * right + .1 * flipped,
                ('robust', .1): (.9 * right - .1 * flipped) / .8, ('hinge', 0.): .85, ('ipo', 0.): (1.5 - 5) ** 2}
    for (loss_type, smoothing), value in expected.items():
        out = preference_loss(Z, WIN, LOSE, loss_type=loss_type, label_smoothing=smoothing)
        assert out.loss.item() == pytest.approx(value), loss_type


def test_dice_loss_by_hand():
    """p = (0.5, 0.5), eps 1: Dice(y_w = (1, 1)) = (2 + 1)/(1 + 2 + 1) = 0.75; Dice(y_l = (0, 0)) = 1/(1 + 1) = 0.5.

    h = log 1.5; loss = -log s(0.1 log 1.5).
    """
    out = preference_loss(image([0., 0.]), image([1., 1.]), image([0., 0.]), loss_type='dice')
    assert out.margin.item() == pytest.approx(0.1 * math.log(1.5))
    assert out.chosen_rewards.item() == pytest.approx(0.1 * math.log(.75))
    assert out.rejected_rewards.item() == pytest.approx(0.1 * math.log(.5))
    assert out.loss.item() == pytest.approx(-math.log(sigmoid(0.1 * math.log(1.5))))


def test_clip_by_hand():
    """d = z - z_ref = (5, -0.5) clipped at 2 is (2, -0.5); s = (1, -1): sum 2.5. No push where the clip acts."""
    z, reference = image([6., 0.5]).requires_grad_(), image([1., 1.])
    margin = pl.log_ratio_margin(z, WIN, LOSE, reference_logits=reference, reduction='sum', clip=2.)
    assert margin.item() == pytest.approx(2.5)
    margin.sum().backward()
    assert z.grad.tolist() == [[[0., -1.]]]
    out = preference_loss(z, WIN, LOSE, reference_logits=reference, reduction='sum', clip=2.)
    assert (out.chosen_rewards - out.rejected_rewards).item() == pytest.approx(0.25)
    # The chosen reward is that of the policy moved by the clipped change: logits (3, 0.5) against (1, 1).
    chosen = sum(math.log(sigmoid(a)) - math.log(sigmoid(b)) for a, b in ((3, 1), (-.5, -1)))
    assert out.chosen_rewards.item() == pytest.approx(0.1 * chosen)


def test_clip_bounds_the_change_in_both_directions():
    """The chosen pixel went 5 the wrong way: it counts as -2, and is pushed no more than one that went too far."""
    z = image([-4., 1.]).requires_grad_()
    margin = pl.log_ratio_margin(z, WIN, LOSE, reference_logits=image([1., 1.]), reduction='sum', clip=2.)
    assert margin.item() == pytest.approx(-2)
    margin.sum().backward()
    assert z.grad.tolist() == [[[0., -1.]]]


def test_pair_weights_and_accuracy():
    """Two pairs, the second with the masks swapped: accuracy 1/2; weights (1, 0) leave half the first loss."""
    z, win, lose = Z.repeat(2, 1, 1), torch.cat([WIN, LOSE]), torch.cat([LOSE, WIN])
    out = preference_loss(z, win, lose)
    assert out.accuracy.item() == 0.5
    weighted = preference_loss(z, win, lose, pair_weights=torch.tensor([1., 0.]))
    assert weighted.loss.item() == pytest.approx(out.per_pair_loss[0].item() / 2)


def test_soft_dice_by_hand():
    """p = (1/2, 1/2), y = (1, 0), eps 1: (2 * 0.5 + 1)/(1 + 1 + 1) = 2/3."""
    assert pl.soft_dice(image([0., 0.]), image([1., 0.])).item() == pytest.approx(2 / 3)


def test_anchor_by_hand():
    """z = 0, y = (1, 0): BCE log 2, 1 - Dice 1/3; weights 2 and 0.5."""
    loss = pl.segmentation_anchor(image([0., 0.]), image([1., 0.]), bce_weight=2, dice_weight=.5)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(2 * math.log(2) + .5 / 3)


def test_kl_by_hand():
    """p_ref 1/2, p 3/4: KL(ref || policy) = 0.5 log(0.5/0.75) + 0.5 log(0.5/0.25) = 0.14384; pixel 2 lies in D."""
    z, reference = image([math.log(3), 9.]), image([0., 0.])
    kl = pl.kl_to_reference(z, reference, image([1., 1.]), image([1., 0.]))
    assert kl.item() == pytest.approx(0.5 * math.log(.5 / .75) + 0.5 * math.log(.5 / .25))
    assert kl.item() == pytest.approx(0.143841, abs=1e-6)


# --- against other formulations -------------------------------------------------------------------------------------


def trl_loss(policy_w, policy_l, reference_w, reference_l, beta, smoothing, loss_type):
    """TRL's DPOTrainer.dpo_loss on given log-probabilities, derived again from the papers' formulas."""
    logits = (policy_w - policy_l) - (reference_w - reference_l)
    log_sigmoid = torch.nn.functional.logsigmoid
    if loss_type == 'sigmoid':
        return -log_sigmoid(beta * logits) * (1 - smoothing) - log_sigmoid(-beta * logits) * smoothing
    if loss_type == 'robust':
        return ((-log_sigmoid(beta * logits) * (1 - smoothing) + log_sigmoid(-beta * logits) * smoothing)
                / (1 - 2 * smoothing))
    if loss_type == 'hinge':
        return torch.relu(1 - beta * logits)
    assert loss_type == 'ipo'
    return (logits - 1 / (2 * beta)) ** 2


# Soft masks with a regional reduction: test_soft_region_rewards_are_those_of_partial_pixels.
@pytest.mark.parametrize('with_reference', [True, False])
@pytest.mark.parametrize('loss_type, reduction, smoothing, soft',
                         [(*c, soft) for c in COMBINATIONS for soft in (False, True)
                          if c[0] != 'dice' and not (soft and c[1] in ('disagreement', 'balanced'))])
def test_equals_trl_on_log_probabilities(loss_type, reduction, smoothing, with_reference, soft):
    """Difference of four log-probabilities (TRL) == the identity used here; rewards too."""
    logits, reference, win, lose = random_case(1, soft=soft)
    region = win - lose if reduction in ('disagreement', 'balanced') else None
    zero = torch.zeros(3, dtype=torch.float64)
    pw, p_l = (pl.mask_log_prob(logits, m, reduction, region) for m in (win, lose))
    rw, rl = ((pl.mask_log_prob(reference, m, reduction, region) for m in (win, lose)) if with_reference
              else (zero, zero))
    out = preference_loss(logits, win, lose, reference_logits=reference if with_reference else None, beta=.3,
                          label_smoothing=smoothing, reduction=reduction, loss_type=loss_type)
    torch.testing.assert_close(out.per_pair_loss, trl_loss(pw, p_l, rw, rl, .3, smoothing, loss_type))
    torch.testing.assert_close(out.chosen_rewards, .3 * (pw - rw))
    torch.testing.assert_close(out.rejected_rewards, .3 * (p_l - rl))


@pytest.mark.parametrize('reduction', ['disagreement', 'balanced'])
def test_soft_region_rewards_are_those_of_partial_pixels(reduction):
    """A pixel with coverage s is the same as splitting it: refine every soft pixel into 4 hard ones of equal logit.

    y_w = (0.75, 0.25), y_l = (0.25, 0.5) become rows of four with nested masks, so |s| quarters of a pixel differ.
    """
    soft = preference_loss(image([1.5, -.7]), image([.75, .25]), image([.25, .5]), reduction=reduction)
    z = image([1.5] * 4 + [-.7] * 4)
    win, lose = image([1., 1, 1, 0, 1, 0, 0, 0]), image([1., 0, 0, 0, 1, 1, 0, 0])
    hard = preference_loss(z, win, lose, reduction=reduction)
    for name in ('loss', 'chosen_rewards', 'rejected_rewards', 'margin'):
        torch.testing.assert_close(getattr(soft, name), getattr(hard, name))


@pytest.mark.parametrize('clip', [None, 1.0])
@pytest.mark.parametrize('loss_type, reduction, smoothing', COMBINATIONS)
def test_margin_is_reward_difference(loss_type, reduction, smoothing, clip):
    logits, reference, win, lose = random_case(2, soft=True)
    out = preference_loss(logits, win, lose, reference_logits=reference, label_smoothing=smoothing,
                          reduction=reduction, loss_type=loss_type, clip=clip)
    torch.testing.assert_close(out.chosen_rewards - out.rejected_rewards, out.margin)


@pytest.mark.parametrize('soft', [False, True], ids=['hard', 'soft'])
def test_balanced_equals_averaged_regions(soft):
    """Against explicit loops over the pixels."""
    logits, _, win, lose = random_case(3, soft=soft)
    for i in range(3):
        plus = minus = size_plus = size_minus = 0.
        for z, s in zip(logits[i].flatten().tolist(), (win - lose)[i].flatten().tolist()):
            if s > 0:
                plus, size_plus = plus + s * z, size_plus + s
            else:
                minus, size_minus = minus + s * z, size_minus - s
        expected = (plus / size_plus + minus / size_minus) / 2
        assert pl.log_ratio_margin(logits, win, lose, reduction='balanced')[i].item() == pytest.approx(expected)


def test_soft_skeleton_of_a_thick_bar_is_its_centreline():
    """A bar of three rows crossing the frame: the soft skeleton is its middle row, as the hard one."""
    mask = torch.zeros(1, 9, 12)
    mask[:, 3:6] = 1
    expected = torch.zeros(1, 9, 12)
    expected[:, 4] = 1
    torch.testing.assert_close(pl.soft_skeleton(mask, 4), expected)


def test_soft_skeleton_of_soft_values_by_hand():
    """One row (1/2, 1, 1/2) in the middle of zeros: round 0 removes the row as it is (the opening is 0), the eroded
    image is 0 and adds nothing. Two stacked rounds combine as a + b - ab: a wide soft bar never exceeds 1.
    """
    row = torch.zeros(1, 5, 3)
    row[0, 2] = torch.tensor([.5, 1., .5])
    torch.testing.assert_close(pl.soft_skeleton(row, 3), row)
    # Columns 0.6, 0.8, 0.6 across 3 rows: round 0 removes 0 at the sides and 0.8 - 0.6 = 0.2 in the middle; the
    # erosion leaves 0.6 in the middle only, all of which round 1 removes: 0.2 + 0.6 - 0.12 = 0.68.
    bar = torch.zeros(1, 5, 9)
    bar[0, 1:4] = torch.tensor([.6, .8, .6])[:, None]
    expected = torch.zeros(1, 5, 9)
    expected[0, 2] = .68
    torch.testing.assert_close(pl.soft_skeleton(bar, 3), expected)


def test_soft_skeleton_is_the_same_with_and_without_gradient_and_as_scipys_grey_morphology():
    from scipy import ndimage

    image = torch.rand(3, 11, 14, generator=torch.Generator().manual_seed(0))
    without = pl.soft_skeleton(image, 3)
    assert torch.equal(without, pl.soft_skeleton(image.clone().requires_grad_(), 3).detach())
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
    dice = [pl.soft_dice(to_logits(m), target).item() for m in (thin_lost, edge_lost)]
    cldice = [pl.soft_cldice(to_logits(m), target).item() for m in (thin_lost, edge_lost)]
    assert dice[0] == pytest.approx(dice[1], abs=1e-4)
    assert cldice[0] < 0.85 < 0.95 < cldice[1]


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('soft', [False, True], ids=['hard', 'soft'])
@pytest.mark.parametrize('reference_and_clip', [(False, None), (True, None), (True, 2.0)], ids=['free', 'ref', 'clip'])
@pytest.mark.parametrize('loss_type, reduction, smoothing', COMBINATIONS)
def test_finite_differences(loss_type, reduction, smoothing, reference_and_clip, soft):
    with_reference, clip = reference_and_clip
    logits, reference, win, lose = random_case(4, pairs=2, size=3, soft=soft)

    def value(z):
        return preference_loss(z, win, lose, reference_logits=reference if with_reference else None, beta=.4,
                               label_smoothing=smoothing, reduction=reduction, loss_type=loss_type, clip=clip,
                               pair_weights=torch.tensor([.5, 1.5])).loss

    assert gradcheck(value, logits.requires_grad_())


@pytest.mark.parametrize('weights', [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, .5)])
def test_finite_differences_of_the_anchor(weights):
    logits, _, target, _ = random_case(5, pairs=2, size=6, soft=True)
    names = ('bce_weight', 'dice_weight', 'cldice_weight')
    assert gradcheck(lambda z: pl.segmentation_anchor(z, target, **dict(zip(names, weights)), cldice_iterations=2),
                     logits.requires_grad_())


def test_finite_differences_of_kl():
    logits, reference, win, lose = random_case(6, pairs=2, size=3, soft=True)
    assert gradcheck(lambda z: pl.kl_to_reference(z, reference, win, lose), logits.requires_grad_())


@pytest.mark.parametrize('loss_type, reduction, smoothing', [c for c in COMBINATIONS if c[0] != 'dice'])
def test_gradient_direction(loss_type, reduction, smoothing):
    """Descent raises logits on chosen-only pixels, lowers them on rejected-only ones, touches nothing else."""
    z = torch.zeros(1, 1, 4, dtype=torch.float64, requires_grad=True)
    win, lose = image([1., 0., 1., 0.]), image([0., 1., 1., 0.])
    preference_loss(z, win, lose, loss_type=loss_type, reduction=reduction, label_smoothing=smoothing).loss.backward()
    assert z.grad[0, 0, 0] < 0 < z.grad[0, 0, 1]
    assert z.grad[0, 0, 2:].tolist() == [0., 0.]


def test_gradient_size_by_hand():
    """d/dz of -log s(beta sum s z / N) at z = 0: -beta s_i / (2 N) = -0.1 / (2 * 2) for the chosen pixel."""
    z = torch.zeros(1, 1, 2, dtype=torch.float64, requires_grad=True)
    preference_loss(z, WIN, LOSE).loss.backward()
    assert z.grad.flatten().tolist() == pytest.approx([-0.025, 0.025])


def test_balanced_gives_both_regions_the_same_total_push():
    """Seven chosen-only pixels against one rejected-only pixel: pooled, D+ gets 7/8 of the push; balanced, half."""
    win, lose = image([1.] * 7 + [0.]), image([0.] * 7 + [1.])
    for reduction, ratio in (('disagreement', 7.), ('balanced', 1.)):
        z = torch.zeros(1, 1, 8, dtype=torch.float64, requires_grad=True)
        preference_loss(z, win, lose, reduction=reduction).loss.backward()
        assert (-z.grad[0, 0, :7].sum() / z.grad[0, 0, 7]).item() == pytest.approx(ratio)


def test_no_gradient_reaches_the_reference():
    logits, reference, win, lose = random_case(7)
    reference.requires_grad_()
    config = PreferenceConfig(reduction='balanced', clip=3., sft_weight=1., kl_weight=1.)
    out = combined_loss(config, logits.requires_grad_(), reference, win, lose)
    sum(value for key, value in out.items() if 'loss' in key).backward()
    assert reference.grad is None and logits.grad is not None


# --- order ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('loss_type, reduction, smoothing', COMBINATIONS)
def test_better_logits_have_lower_loss(loss_type, reduction, smoothing):
    """Logits that draw the chosen mask score below flat logits, and those below logits that draw the rejected mask."""
    _, _, win, lose = random_case(8)
    losses = [preference_loss(0.5 * (2 * mask - 1), win, lose, loss_type=loss_type, reduction=reduction,
                              label_smoothing=smoothing, beta=.05).loss.item()
              for mask in (win, torch.full_like(win, .5), lose)]
    assert losses == sorted(losses) and len(set(losses)) == 3


@pytest.mark.parametrize('weights', [dict(bce_weight=1, dice_weight=0), dict(bce_weight=0, dice_weight=1),
                                     dict(bce_weight=0, dice_weight=0, cldice_weight=1)])
def test_better_logits_have_a_lower_anchor(weights):
    target = torch.zeros(1, 16, 16)
    target[:, 5:9, 2:14] = 1
    target[:, 5:, 7:9] = 1
    shifted = target.roll(3, dims=1)
    good, poor, bad = (pl.segmentation_anchor(6 * (2 * mask - 1), target, **weights).item()
                       for mask in (target, shifted, 1 - target))
    assert good < poor < bad


# --- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('loss_type, reduction, smoothing', COMBINATIONS)
@pytest.mark.parametrize('with_reference', [True, False])
def test_identical_masks_give_no_signal(loss_type, reduction, smoothing, with_reference):
    for mask in (random_case(9)[2], random_case(9, soft=True)[2], torch.zeros(3, 5, 5), torch.ones(3, 5, 5)):
        logits, reference, _, _ = random_case(9)
        z = logits.requires_grad_()
        out = preference_loss(z, mask, mask.clone(), reference_logits=reference if with_reference else None,
                              reduction=reduction, loss_type=loss_type, label_smoothing=smoothing)
        out.loss.backward()
        assert z.grad.abs().max() == 0
        assert out.margin.tolist() == [0.] * 3 and out.accuracy == 0
        expected = dict(hinge=1., ipo=25.).get(loss_type, math.log(2))
        assert out.loss.item() == pytest.approx(expected)
        assert all(torch.isfinite(rewards).all() for rewards in (out.chosen_rewards, out.rejected_rewards))


@pytest.mark.parametrize('loss_type, reduction, smoothing', COMBINATIONS)
@pytest.mark.parametrize('extreme', [0., 1e4, -1e4])
def test_empty_and_full_masks_stay_finite(loss_type, reduction, smoothing, extreme):
    empty, full = torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    for win, lose in itertools.permutations([empty, full, (torch.rand(1, 4, 4) > .5).float()], 2):
        z = torch.full((1, 4, 4), extreme, requires_grad=True)
        out = preference_loss(z, win, lose, reduction=reduction, loss_type=loss_type, label_smoothing=smoothing)
        out.loss.backward()
        for value in (out.loss, out.chosen_rewards, out.rejected_rewards, z.grad):
            assert torch.isfinite(value).all()


@pytest.mark.parametrize('mask', [torch.zeros(1, 8, 8), torch.ones(1, 8, 8)], ids=['empty', 'full'])
def test_anchor_of_empty_and_full_masks(mask):
    """Confident and right: about 0. Confident and wrong: large but finite, with a finite gradient."""
    right = pl.segmentation_anchor(60 * (2 * mask - 1), mask, cldice_weight=1)
    wrong_logits = (-60 * (2 * mask - 1)).requires_grad_()
    wrong = pl.segmentation_anchor(wrong_logits, mask, cldice_weight=1)
    wrong.sum().backward()
    assert right.item() == pytest.approx(0, abs=1e-5) and 60 < wrong.item() < 63
    assert torch.isfinite(wrong_logits.grad).all()


def test_kl_is_zero_at_the_reference_and_where_masks_disagree_everywhere():
    logits, _, win, _ = random_case(10)
    assert pl.kl_to_reference(logits, logits, win, win).abs().max() < 1e-12
    assert pl.kl_to_reference(logits, logits + 5, win, 1 - win).tolist() == [0.] * 3


@pytest.mark.parametrize('loss_type, reduction, smoothing', COMBINATIONS)
def test_bfloat16_is_computed_in_float32(loss_type, reduction, smoothing):
    """The result of bf16 logits equals that of the same values in float32 to the bit; the gradient comes back bf16."""
    logits, reference, win, lose = random_case(11, size=64, dtype=torch.float32)
    low, low_reference = logits.bfloat16().requires_grad_(), reference.bfloat16()
    settings = dict(reduction=reduction, loss_type=loss_type, label_smoothing=smoothing)
    out = preference_loss(low, win.bfloat16(), lose.bfloat16(), reference_logits=low_reference, **settings)
    same = preference_loss(low.detach().float(), win, lose, reference_logits=low_reference.float(), **settings)
    assert out.loss.dtype == torch.float32 and torch.equal(out.loss, same.loss)
    close = preference_loss(logits, win, lose, reference_logits=reference, **settings)
    assert out.margin.tolist() == pytest.approx(close.margin.tolist(), rel=0.02, abs=0.05)
    out.loss.backward()
    assert low.grad.dtype == torch.bfloat16 and torch.isfinite(low.grad).all()


def test_autocast_does_not_lower_the_precision():
    logits, reference, win, lose = random_case(12, size=64, dtype=torch.float32)
    plain = preference_loss(logits, win, lose, reference_logits=reference, reduction='sum')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        cast = preference_loss(logits, win, lose, reference_logits=reference, reduction='sum')
    assert torch.equal(plain.margin, cast.margin)


def test_bool_masks_equal_float_masks():
    logits, reference, win, lose = random_case(13)
    as_bool = preference_loss(logits, win.bool(), lose.bool(), reference_logits=reference, reduction='balanced')
    as_float = preference_loss(logits, win, lose, reference_logits=reference, reduction='balanced')
    assert torch.equal(as_bool.loss, as_float.loss)


@pytest.mark.parametrize('loss_type, reduction, smoothing', COMBINATIONS)
def test_image_index_equals_repeated_logits(loss_type, reduction, smoothing):
    """Three pairs on two images: value, rewards and gradient as if the logits had been repeated by hand."""
    logits, reference, win, lose = random_case(14)
    index = torch.tensor([1, 0, 1])
    settings = dict(reduction=reduction, loss_type=loss_type, label_smoothing=smoothing)
    shared, repeated = logits[:2].clone().requires_grad_(), logits[:2].clone().requires_grad_()
    one = preference_loss(shared, win, lose, reference_logits=reference[:2], image_index=index, **settings)
    two = preference_loss(repeated[index], win, lose, reference_logits=reference[:2][index], **settings)
    one.loss.backward()
    two.loss.backward()
    torch.testing.assert_close(one.per_pair_loss, two.per_pair_loss)
    torch.testing.assert_close(one.chosen_rewards, two.chosen_rewards)
    torch.testing.assert_close(shared.grad, repeated.grad)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('settings, words', [
    (dict(loss_type='robust'), 'flip rate'),
    (dict(loss_type='robust', label_smoothing=.5), r'\[0, 0.5\)'),
    (dict(label_smoothing=-.1), r'\[0, 0.5\)'),
    (dict(label_smoothing=True), r'\[0, 0.5\)'),
    (dict(loss_type='hinge', label_smoothing=.1), 'no label_smoothing'),
    (dict(loss_type='ipo', label_smoothing=.1), 'no label_smoothing'),
    (dict(loss_type='ipo', reduction='sum'), 'average'),
    *[(dict(loss_type='dice', reduction=reduction), 'ratio') for reduction in ('sum', 'disagreement', 'balanced')],
    (dict(clip=1.), 'needs a reference'),
    (dict(clip=0., reference_logits=Z), 'clip'),
    (dict(beta=0.), 'beta'), (dict(beta='0.1'), 'beta'), (dict(beta=float('nan')), 'beta'),
    (dict(loss_type='kto'), 'loss_type'), (dict(reduction='max'), 'reduction'),
    (dict(reference_logits=Z[..., :1]), 'one shape'),
    (dict(pair_weights=torch.ones(2)), 'pair_weights'),
    (dict(image_index=torch.zeros(2, dtype=torch.long)), 'image_index'),
    (dict(image_index=torch.zeros(1)), 'image_index'),
])
def test_unsupported_combinations_say_why(settings, words):
    with pytest.raises(ValueError, match=words):
        preference_loss(Z, WIN, LOSE, **settings)


def test_bad_masks_are_refused():
    with pytest.raises(ValueError, match='bool, or floating point'):
        preference_loss(Z, (255 * WIN).byte(), LOSE)
    with pytest.raises(ValueError, match='one shape'):
        preference_loss(Z, WIN[..., :1], LOSE)
    with pytest.raises(ValueError, match='no pairs'):
        preference_loss(Z[:0], WIN[:0], LOSE[:0])
    with pytest.raises(ValueError, match='needs region'):
        pl.mask_log_prob(Z, WIN, 'balanced')
    with pytest.raises(ValueError, match='leave region out'):
        pl.mask_log_prob(Z, WIN, 'mean', WIN - LOSE)
    with pytest.raises(ValueError, match='all 0'):
        pl.segmentation_anchor(Z, WIN, bce_weight=0, dice_weight=0)


# --- configuration --------------------------------------------------------------------------------------------------


def test_the_guide_switch_is_the_guides_formula():
    config = PreferenceConfig.from_dict(dict(type='guide'))
    assert config == PreferenceConfig()
    assert (config.beta, config.label_smoothing, config.reduction, config.loss_type) == (.1, 0., 'mean', 'sigmoid')
    assert config.use_reference and config.weight == 1 and config.sft_weight == config.kl_weight == 0
    logits, reference, win, lose = random_case(15)
    out = combined_loss(config, logits, reference, win, lose)
    log_prob = pl.mask_log_prob
    inside = (log_prob(logits, win) - log_prob(reference, win)) - (log_prob(logits, lose) - log_prob(reference, lose))
    torch.testing.assert_close(out['dpo_loss'], -torch.log(1 / (1 + torch.exp(-.1 * inside))).mean())
    assert [key for key in out if 'loss' in key] == ['dpo_loss']


def test_the_guides_simplified_form():
    config = PreferenceConfig.from_dict(dict(type='guide', use_reference=False, beta=.2))
    logits, _, win, lose = random_case(16)
    inside = pl.mask_log_prob(logits, win) - pl.mask_log_prob(logits, lose)
    torch.testing.assert_close(combined_loss(config, logits, None, win, lose)['dpo_loss'],
                               -torch.log(1 / (1 + torch.exp(-.2 * inside))).mean())


@pytest.mark.parametrize('settings, words', [
    (dict(betta=.1), 'unknown field betta'),
    (dict(type='guides'), 'preference.type'),
    (dict(type='guide', sft_weight=1.), '_delete_=True'),
    (dict(type='guide', reduction='balanced'), "reduction='balanced'"),
    (dict(loss_type='robust'), 'flip rate'),
    (dict(clip=3., use_reference=False), 'needs a reference'),
    (dict(kl_weight=.1, use_reference=False), 'kl_weight needs a reference'),
    (dict(weight=0.), 'nothing to train'),
    (dict(weight=-1.), 'preference.weight'),
    (dict(sft_weight='1'), 'preference.sft_weight'),
    (dict(sft_weight=1., sft_bce=0., sft_dice=0.), 'sft_bce'),
    (dict(gap_weighting=1), 'gap_weighting'),
    (dict(cldice_iterations=0), 'cldice_iterations'),
])
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        PreferenceConfig.from_dict(settings)


def test_settings_of_a_base_config_that_agree_with_the_guide_pass():
    assert PreferenceConfig.from_dict(dict(type='guide', sft_weight=0., reduction='mean')) == PreferenceConfig()


def test_config_is_frozen():
    with pytest.raises(AttributeError):
        PreferenceConfig().beta = 1.


# --- the whole objective --------------------------------------------------------------------------------------------


def test_combined_terms_are_weighted_and_raw_values_are_logged():
    logits, reference, win, lose = random_case(17)
    config = PreferenceConfig(reduction='balanced', beta=1., weight=.2, sft_weight=.5, sft_bce=2., sft_dice=.5,
                              kl_weight=3.)
    out = combined_loss(config, logits.requires_grad_(), reference, win, lose)
    alone = preference_loss(logits, win, lose, reference_logits=reference, reduction='balanced', beta=1.)
    anchor = pl.segmentation_anchor(logits, win, bce_weight=2., dice_weight=.5).mean()
    kl = pl.kl_to_reference(logits, reference, win, lose).mean()
    torch.testing.assert_close(out['dpo_loss'], .2 * alone.loss)
    torch.testing.assert_close(out['sft_loss'], .5 * anchor)
    torch.testing.assert_close(out['kl_loss'], 3 * kl)
    torch.testing.assert_close(out['preference_nll'], alone.loss.detach())
    torch.testing.assert_close(out['margin'], alone.margin.mean())
    torch.testing.assert_close(out['chosen_rewards'], alone.chosen_rewards.mean())
    # mmengine sums every key that contains "loss": exactly these.
    assert sorted(key for key in out if 'loss' in key) == ['dpo_loss', 'kl_loss', 'sft_loss']
    assert all(value.ndim == 0 for value in out.values())
    assert all(not value.requires_grad for key, value in out.items() if 'loss' not in key)


def test_combined_monitoring_by_hand():
    """|z| = (12, 1, 11, 0): half saturated. D = pixels 0 and 1. Outside D |z - z_ref| = (1, 3): drift 2."""
    z, reference = image([12., 1., -11., 0.]), image([0., 0., -10., 3.])
    out = combined_loss(PreferenceConfig(), z, reference, image([1., 0., 1., 0.]), image([0., 1., 1., 0.]))
    assert out['saturation'] == .5 and out['disagreement_pixels'] == 2 and out['drift_outside'] == 2


def test_anchor_only_twin_has_the_anchors_gradient_alone():
    logits, reference, win, lose = random_case(18)
    twin, anchor = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    out = combined_loss(PreferenceConfig(weight=0., sft_weight=1.), twin, reference, win, lose)
    (out['dpo_loss'] + out['sft_loss']).backward()
    pl.segmentation_anchor(anchor, win).mean().backward()
    assert torch.equal(twin.grad, anchor.grad)
    assert not out['dpo_loss'].requires_grad, 'the twin pays for a gradient that it does not use'
    assert out['dpo_loss'] == 0 and out['preference_nll'] > 0 and 0 <= out['accuracy'] <= 1


def test_gap_weighting_by_hand():
    """Gaps 0.1 and 0.3: weights 0.5 and 1.5. All gaps 0: weights 1."""
    logits, _, win, lose = random_case(19, pairs=2)
    config = PreferenceConfig(gap_weighting=True, use_reference=False)
    pair = preference_loss(logits, win, lose).per_pair_loss
    out = combined_loss(config, logits, None, win, lose, gaps=torch.tensor([.1, .3]))
    torch.testing.assert_close(out['dpo_loss'], (.5 * pair[0] + 1.5 * pair[1]) / 2)
    zero = combined_loss(config, logits, None, win, lose, gaps=torch.zeros(2))
    torch.testing.assert_close(zero['dpo_loss'], pair.mean())


def test_combined_with_image_index_equals_repeated_logits():
    logits, reference, win, lose = random_case(20)
    index = torch.tensor([0, 1, 1])
    config = PreferenceConfig(reduction='disagreement', sft_weight=1., sft_cldice=.5, kl_weight=1., clip=3.)
    one = combined_loss(config, logits[:2], reference[:2], win, lose, image_index=index)
    two = combined_loss(config, logits[:2][index], reference[:2][index], win, lose)
    for key in set(one) - {'saturation'}:  # counted once an image
        torch.testing.assert_close(one[key], two[key])


def test_skeletons_of_repeated_targets_are_computed_once_and_are_the_same(monkeypatch):
    masks = (torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(7)) > .4).float()
    targets = masks[[1, 0, 1, 2, 0]]
    logits = torch.randn(5, 12, 12, generator=torch.Generator().manual_seed(8))
    expected = torch.cat([pl.soft_cldice(z[None], y[None]) for z, y in zip(logits, targets)])
    computed, skeleton = [], pl.soft_skeleton
    monkeypatch.setattr(pl, 'soft_skeleton', lambda image, n: computed.append(len(image)) or skeleton(image, n))
    torch.testing.assert_close(pl.soft_cldice(logits, targets), expected)
    assert computed == [5, 3]


def test_a_skeleton_ends_early_with_the_values_of_all_rounds():
    mask = torch.zeros(1, 20, 20)
    mask[0, 8:11, :] = 1
    mask[0, 3:10, 4:9] = .5
    full = pl.soft_skeleton(mask.clone().requires_grad_(), 30).detach()  # goes through every round
    assert torch.equal(pl.soft_skeleton(mask, 30), full) and full.sum() > 0
    assert torch.equal(pl.soft_skeleton(torch.zeros(1, 4, 4), 30), torch.zeros(1, 4, 4))


def test_anchor_gradient_with_image_index_equals_repeated_logits():
    logits, _, target, _ = random_case(23, size=8)
    index = torch.tensor([1, 0, 1])
    shared, repeated = logits[:2].clone().requires_grad_(), logits[:2].clone().requires_grad_()
    one = pl.segmentation_anchor(shared, target, cldice_weight=1., cldice_iterations=3, image_index=index)
    two = pl.segmentation_anchor(repeated[index], target, cldice_weight=1., cldice_iterations=3)
    one.sum().backward()
    two.sum().backward()
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(shared.grad, repeated.grad)


def test_combined_refuses_what_does_not_fit_the_config():
    logits, reference, win, lose = random_case(21)
    with pytest.raises(ValueError, match='no reference logits'):
        combined_loss(PreferenceConfig(), logits, None, win, lose)
    with pytest.raises(ValueError, match='would be ignored'):
        combined_loss(PreferenceConfig(use_reference=False), logits, reference, win, lose)
    with pytest.raises(ValueError, match='iou_gap'):
        combined_loss(PreferenceConfig(gap_weighting=True), logits, reference, win, lose)


def test_descent_ends_preferring_the_chosen_mask():
    """Gradient descent on free logits: every supported loss ends preferring chosen on every pair."""
    _, _, win, lose = random_case(22)
    for loss_type, reduction, smoothing in COMBINATIONS:
        settings = dict(loss_type=loss_type, reduction=reduction, label_smoothing=smoothing, beta=1.)
        z = torch.zeros_like(win, requires_grad=True)
        for _ in range(30):
            out = preference_loss(z, win, lose, **settings)
            gradient, = torch.autograd.grad(out.loss, z)
            z = (z - 10 * gradient).detach().requires_grad_()
        final = preference_loss(z, win, lose, **settings)
        assert final.accuracy == 1, (loss_type, reduction)
