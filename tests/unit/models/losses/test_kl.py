"""KL to the reference by hand and by finite differences."""
from __future__ import annotations

import math

import pytest
from torch.autograd import gradcheck

from sa2va_dpo.models.losses import kl_to_reference

from .cases import image, random_case


def test_kl_by_hand():
    """p_ref 1/2, p 3/4: KL(ref || policy) = 0.5 log(0.5/0.75) + 0.5 log(0.5/0.25) = 0.14384; pixel 2 lies in D."""
    z, reference = image([math.log(3), 9.]), image([0., 0.])
    kl = kl_to_reference(z, reference, image([1., 1.]), image([1., 0.]))
    assert kl.item() == pytest.approx(0.5 * math.log(.5 / .75) + 0.5 * math.log(.5 / .25))
    assert kl.item() == pytest.approx(0.143841, abs=1e-6)


def test_finite_differences_of_kl():
    logits, reference, win, lose = random_case(6, pairs=2, size=3, soft=True)
    assert gradcheck(lambda z: kl_to_reference(z, reference, win, lose), logits.requires_grad_())


def test_kl_is_zero_at_the_reference_and_where_masks_disagree_everywhere():
    logits, _, win, _ = random_case(10)
    assert kl_to_reference(logits, logits, win, win).abs().max() < 1e-12
    assert kl_to_reference(logits, logits + 5, win, 1 - win).tolist() == [0.] * 3
