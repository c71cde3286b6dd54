"""Dtypes, shapes, index of images and soft Dice, through the losses that use them."""
from __future__ import annotations

import pytest
import torch

from sa2va_dpo.models.losses import mask_log_prob, preference_loss, soft_dice, supervised_term

from .cases import COMBINATIONS, LOSE, WIN, Z, image, random_case


def test_soft_dice_by_hand():
    """p = (1/2, 1/2), y = (1, 0), eps 1: (2 * 0.5 + 1)/(1 + 1 + 1) = 2/3."""
    assert soft_dice(image([0., 0.]), image([1., 0.])).item() == pytest.approx(2 / 3)


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


def test_bad_masks_are_refused():
    with pytest.raises(ValueError, match='bool, or floating point'):
        preference_loss(Z, (255 * WIN).byte(), LOSE)
    with pytest.raises(ValueError, match='one shape'):
        preference_loss(Z, WIN[..., :1], LOSE)
    with pytest.raises(ValueError, match='no pairs'):
        preference_loss(Z[:0], WIN[:0], LOSE[:0])
    with pytest.raises(ValueError, match='needs region'):
        mask_log_prob(Z, WIN, 'balanced')
    with pytest.raises(ValueError, match='leave region out'):
        mask_log_prob(Z, WIN, 'mean', WIN - LOSE)
    with pytest.raises(ValueError, match='all 0'):
        supervised_term(Z, WIN, bce_weight=0, dice_weight=0)
