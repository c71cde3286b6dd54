"""The preference term by hand-worked numbers, against TRL's formulas, by finite differences, and at the edges."""
from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck

from sa2va_dpo.models.losses import log_ratio_margin, mask_log_prob, preference_loss

from .cases import COMBINATIONS, LOSE, WIN, Z, image, random_case, sigmoid


def test_mask_log_prob_by_hand():
    """z = 0: every pixel has log(1/2), whatever the mask; z = (2, -1), y = (1, 0): log s(2) + log s(1)."""
    zero = torch.zeros(1, 2, 2)
    mask = torch.tensor([[[1., 0.], [0., 1.]]])
    assert mask_log_prob(zero, mask).item() == pytest.approx(-0.693147, abs=1e-6)
    assert mask_log_prob(zero, mask, 'sum').item() == pytest.approx(-2.772589, abs=1e-6)
    expected = math.log(sigmoid(2)) + math.log(sigmoid(1))
    assert mask_log_prob(Z, WIN, 'sum').item() == pytest.approx(expected)
    assert mask_log_prob(Z, WIN, 'mean').item() == pytest.approx(expected / 2)


def test_guide_formula_of_mask_log_prob():
    """sum_i (y_i log p_i + (1 - y_i) log(1 - p_i)) / N, written out with probabilities."""
    logits, _, mask, _ = random_case(0, soft=True)
    p = 1 / (1 + torch.exp(-logits))
    n = logits[0].numel()
    expected = (mask * torch.log(p) + (1 - mask) * torch.log(1 - p)).flatten(1).sum(1) / n
    torch.testing.assert_close(mask_log_prob(logits, mask), expected)


def test_regional_log_prob_by_hand():
    """Four pixels z = (1, 2, 3, 4), mask (1, 1, 0, 0); the rejected mask is (0, 0, 0, 1), so D+ = {0, 1}, D- = {3}.

    l = (log s(1), log s(2), -, log s(-4)); disagreement: their mean over 3 pixels; balanced: the mean of
    (l0 + l1) / 2 and l3.
    """
    z, mask, region = image([1., 2., 3., 4.]), image([1., 1., 0., 0.]), image([1., 1., 0., -1.])
    l0, l1, l3 = (math.log(sigmoid(v)) for v in (1, 2, -4))
    assert mask_log_prob(z, mask, 'disagreement', region).item() == pytest.approx((l0 + l1 + l3) / 3)
    assert mask_log_prob(z, mask, 'balanced', region).item() == pytest.approx(((l0 + l1) / 2 + l3) / 2)


def test_margin_by_hand():
    """Same four pixels: sum s z = 1 + 2 - 4 = -1; /4, /3; balanced ((1 + 2)/2 + (-4))/2 = -1.25."""
    z, win, lose = image([1., 2., 3., 4.]), image([1., 1., 0., 0.]), image([0., 0., 0., 1.])
    expected = dict(sum=-1., mean=-0.25, disagreement=-1 / 3, balanced=-1.25)
    for reduction, value in expected.items():
        assert log_ratio_margin(z, win, lose, reduction=reduction).item() == pytest.approx(value)


def test_balanced_uses_the_one_region_that_is_not_empty():
    """Rejected inside chosen: D- is empty, the margin is the plain average over D+ = (2 + 5)/2, not half of it."""
    z, win, lose = image([2., 5., 1.]), image([1., 1., 1.]), image([0., 0., 1.])
    assert log_ratio_margin(z, win, lose, reduction='balanced').item() == pytest.approx(3.5)
    assert log_ratio_margin(z, lose, win, reduction='balanced').item() == pytest.approx(-3.5)


def test_soft_masks_weigh_regions_by_coverage():
    """s = (0.5, -0.25): |D| = 0.75. z = (2, 4): sum 1 - 1 = 0; balanced (2 - 4)/2 = -1."""
    z, win, lose = image([2., 4.]), image([0.75, 0.25]), image([0.25, 0.5])
    assert log_ratio_margin(z, win, lose, reduction='disagreement').item() == pytest.approx(0)
    assert log_ratio_margin(z, win, lose, reduction='balanced').item() == pytest.approx(-1)


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
    margin = log_ratio_margin(z, WIN, LOSE, reference_logits=reference, reduction='sum', clip=2.)
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
    margin = log_ratio_margin(z, WIN, LOSE, reference_logits=image([1., 1.]), reduction='sum', clip=2.)
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
    pw, p_l = (mask_log_prob(logits, m, reduction, region) for m in (win, lose))
    rw, rl = ((mask_log_prob(reference, m, reduction, region) for m in (win, lose)) if with_reference
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
        assert log_ratio_margin(logits, win, lose, reduction='balanced')[i].item() == pytest.approx(expected)


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


@pytest.mark.parametrize('loss_type, reduction, smoothing', COMBINATIONS)
def test_better_logits_have_lower_loss(loss_type, reduction, smoothing):
    """Logits that draw the chosen mask score below flat logits, and those below logits that draw the rejected mask."""
    _, _, win, lose = random_case(8)
    losses = [preference_loss(0.5 * (2 * mask - 1), win, lose, loss_type=loss_type, reduction=reduction,
                              label_smoothing=smoothing, beta=.05).loss.item()
              for mask in (win, torch.full_like(win, .5), lose)]
    assert losses == sorted(losses) and len(set(losses)) == 3


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
