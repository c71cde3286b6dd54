"""What no trained part can change is computed once for policy and reference, and nothing else is."""
import pytest
import torch

from sa2va_dpo.models.frozen import with_frozen_results

from .preference_case import RECIPE, build, data_of

PARTS = {
    'what the full config trains': (RECIPE, {'vision_tokens'}),
    'language model frozen': (dict(projector='full', sam2_encoder=dict(mode='lora', r=4)), {'seg_states'}),
    'decoder alone': (dict(mask_decoder='full'), {'seg_states', 'sam2_levels'}),
    'vision tower': (dict(vision=dict(mode='lora', r=4), sam2_neck='full'), set()),
    'vision projector': (dict(vision_projector='full', mask_decoder='full'), {'sam2_levels'}),
    'everything': ('all', set()),
}


@pytest.mark.parametrize('trainable, expected', PARTS.values(), ids=PARTS)
def test_what_is_added_gives_the_same_losses_and_gradients(micro_checkpoint, trainable, expected):
    model, data = build(micro_checkpoint, trainable), data_of(micro_checkpoint, (80, 120), images=2)
    batch = with_frozen_results(model.policy, data['batch'], model.switches)
    assert set(batch) - set(data['batch']) == expected
    found = losses_and_gradients(model, data)
    model.switches = dict.fromkeys(('vision', 'vision_projector', 'llm', 'sam2_encoder', 'sam2_neck'))
    # With everything said to move, policy and reference compute all of it, each by itself.
    apart = losses_and_gradients(model, data)
    assert found.keys() == apart.keys() and len(found) > 1
    for name, value in found.items():
        torch.testing.assert_close(value, apart[name], rtol=1e-5, atol=1e-6, msg=name)


def losses_and_gradients(model, data) -> dict:
    model.zero_grad()
    losses = model.loss(**data)
    total = sum(value for name, value in losses.items() if 'loss' in name)
    total.backward()
    return dict(loss=total.detach(), **{
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def test_what_a_batch_brings_is_taken_as_it_is(micro_checkpoint):
    model, data = build(micro_checkpoint, dict(mask_decoder='full')), data_of(micro_checkpoint, (80, 80), images=1)
    ready = with_frozen_results(model.policy, data['batch'], model.switches)
    again = with_frozen_results(model.policy, ready, model.switches)
    assert all(again[name] is value for name, value in ready.items())
    assert 'seg_states' not in data['batch'], 'the batch that was given is left alone'
