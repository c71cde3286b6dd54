"""The reference is the policy before training, to the bit."""
import copy

import numpy as np
import pytest
import torch

from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.models.reference import build_reference
from sa2va_dpo.models.trainable import set_trainable

RECIPE = dict(llm=dict(mode='lora', r=4, dropout=0.3), sam2_encoder=dict(mode='lora', r=4), sam2_neck='full',
              projector='full', mask_decoder='full')


@pytest.fixture(scope='module')
def batch(micro_checkpoint):
    pre = Sa2VAPreprocessor.from_pretrained(micro_checkpoint)
    images = np.random.default_rng(1).integers(0, 255, (2, 80, 80, 3), np.uint8)
    return pre.collate([pre(image, 'Please segment the blood vessels.') for image in images])


def trained(micro_checkpoint, kind, batch):
    """A policy that has taken three real optimiser steps, its reference, and what the untouched checkpoint says."""
    with torch.no_grad():
        untouched = load_checkpoint(micro_checkpoint)(batch)
    policy = load_checkpoint(micro_checkpoint)
    set_trainable(policy, RECIPE)
    reference = build_reference(kind, policy)
    policy.train()
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        policy(batch).low_res.square().mean().backward()
        optimizer.step()
    return policy, reference, untouched


@pytest.mark.parametrize('kind', ['initial', 'copy'])
def test_reference_equals_the_untouched_checkpoint_to_the_bit_after_training(micro_checkpoint, batch, kind):
    policy, reference, untouched = trained(micro_checkpoint, kind, batch)
    answer = reference(policy, batch)
    for field in ('low_res', 'hypotheses', 'iou_pred', 'seg_embedding'):
        assert torch.equal(getattr(answer, field), getattr(untouched, field)), field
    assert (policy(batch).low_res - untouched.low_res).abs().max() > 1e-2, 'the policy itself must have moved'


def test_reference_pass_leaves_the_policy_as_it_was(micro_checkpoint, batch):
    policy, reference, _ = trained(micro_checkpoint, 'initial', batch)
    state = copy.deepcopy(policy.state_dict())
    flags = [(p.requires_grad, m.training) for m in policy.modules() for p in m.parameters(recurse=False)]
    answer = reference(policy, batch)
    assert not answer.low_res.requires_grad
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in state.items())
    assert flags == [(p.requires_grad, m.training) for m in policy.modules() for p in m.parameters(recurse=False)]


def test_snapshots_never_enter_a_checkpoint(micro_checkpoint):
    policy = load_checkpoint(micro_checkpoint)
    set_trainable(policy, RECIPE)
    assert dict(build_reference('initial', policy).state_dict()) == {}


def test_unknown_kind():
    with pytest.raises(ValueError, match='reference'):
        build_reference('ema', torch.nn.Linear(1, 1))
