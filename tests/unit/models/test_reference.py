"""The reference is the policy before training, to the bit."""
import copy

import numpy as np
import pytest
import torch

from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.models.reference import build_reference
from sa2va_dpo.models.sa2va_dpo_model import Sa2VADPOModel
from sa2va_dpo.models.trainable import lora_layers, set_trainable

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


# -- dropout ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', ['initial', 'copy'])
def test_no_dropout_of_the_policy_reaches_the_reference(micro_checkpoint, batch, kind):
    """A dropout outside the adapters: off in the reference although the policy is in training mode."""
    policy = load_checkpoint(micro_checkpoint)
    policy.text_hidden_fcs[1] = torch.nn.Sequential(policy.text_hidden_fcs[1], torch.nn.Dropout(0.5))
    set_trainable(policy, RECIPE)
    reference = build_reference(kind, policy)
    with torch.no_grad():
        expected = policy.eval()(batch).low_res
        policy.train()
        assert not torch.equal(policy(batch).low_res, expected), 'the dropout must matter'
        assert torch.equal(reference.train()(policy, batch).low_res, expected)
    assert policy.training and policy.text_hidden_fcs[1].training


# -- rounds -----------------------------------------------------------------------------------------------------------

def step(policy, batch, times=2):
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    policy.train()
    for _ in range(times):
        optimizer.zero_grad()
        policy(batch).low_res.square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize('kind', ['initial', 'copy'])
def test_after_a_reset_the_reference_is_the_policy_of_that_moment_to_the_bit(micro_checkpoint, batch, kind):
    policy, reference, untouched = trained(micro_checkpoint, kind, batch)
    frozen = copy.deepcopy(policy).eval()
    version = reference.version
    reference.reset(policy)
    assert reference.version != version and reference.equals(policy)
    step(policy, batch)
    assert policy.training and not reference.equals(policy)
    with torch.no_grad():
        expected = frozen(batch)
    # In training mode, with LoRA dropout 0.3 in the policy and adapters on in the reference.
    answer = reference(policy, batch)
    for field in ('low_res', 'hypotheses', 'iou_pred', 'seg_embedding'):
        assert torch.equal(getattr(answer, field), getattr(expected, field)), field
    assert (expected.low_res - untouched.low_res).abs().max() > 1e-2, 'the reference itself must have moved'
    reference.reset(policy)
    assert torch.equal(reference(policy, batch).low_res, policy.eval()(batch).low_res)


@pytest.mark.parametrize('kind', ['initial', 'copy'])
@pytest.mark.parametrize('was_reset', [False, True])
def test_a_resumed_run_gets_the_same_reference_from_a_file(micro_checkpoint, batch, tmp_path, kind, was_reset):
    from safetensors.torch import load_file, save_file

    policy, reference, _ = trained(micro_checkpoint, kind, batch)
    if was_reset:
        reference.reset(policy)
        step(policy, batch)
    save_file(reference.state_dict_of_reference(), tmp_path / 'reference.safetensors')
    resumed = load_checkpoint(micro_checkpoint)
    set_trainable(resumed, RECIPE)
    again = build_reference(kind, resumed)
    resumed.load_state_dict(policy.state_dict())
    again.load_reference(resumed, load_file(tmp_path / 'reference.safetensors'))
    assert torch.equal(again(resumed, batch).low_res, reference(policy, batch).low_res)
    assert dict(again.state_dict()) == {} or kind == 'copy'


@pytest.mark.parametrize('change, words', [
    (lambda t: t.pop('text_hidden_fcs.0.weight'), 'text_hidden_fcs.0.weight is missing'),
    (lambda t: t.update({'sam2.no_memory_embedding': torch.zeros(1)}), 'sam2.no_memory_embedding is unexpected'),
    (lambda t: t.update({'text_hidden_fcs.0.bias': torch.zeros(1)}), 'text_hidden_fcs.0.bias has shape'),
])
def test_tensors_of_another_reference_are_named(micro_checkpoint, change, words):
    policy = load_checkpoint(micro_checkpoint)
    set_trainable(policy, RECIPE)
    reference = build_reference('initial', policy)
    reference.reset(policy)
    tensors = reference.state_dict_of_reference()
    change(tensors)
    with pytest.raises(ValueError, match=words):
        reference.load_reference(policy, tensors)


# -- is the policy the reference? -------------------------------------------------------------------------------------

def change_one(policy, part: str):
    name, parameter = next((n, p) for n, p in policy.named_parameters() if part in n and p.requires_grad)
    with torch.no_grad():
        parameter.view(-1)[-1] += 0.1


@pytest.mark.parametrize('kind', ['initial', 'copy', 'stored'])
@pytest.mark.parametrize('part', ['lora_B', 'mask_decoder', 'text_hidden_fcs', 'vision_encoder.neck'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_one_changed_number_makes_the_policy_another_than_its_reference(micro_checkpoint, kind, part, dtype):
    model = Sa2VADPOModel(str(micro_checkpoint), RECIPE, dict(beta=1.0), reference=kind, score_size=64)
    model.to(dtype)  # as DeepSpeed does after the model was built
    assert model.policy_is_reference()
    change_one(model.policy, part)
    assert not model.policy_is_reference()


def test_without_a_reference_the_policy_is_none(micro_checkpoint):
    model = Sa2VADPOModel(str(micro_checkpoint), RECIPE, dict(beta=1.0), reference='none', score_size=64)
    assert not model.policy_is_reference()
    with pytest.raises(ValueError, match='cannot be reset'):
        model.reset_reference()


def test_a_reset_changes_the_version_that_keepers_of_logits_look_at(micro_checkpoint):
    model = Sa2VADPOModel(str(micro_checkpoint), RECIPE, dict(beta=1.0), score_size=64)
    before = model.reference_version
    change_one(model.policy, 'lora_B')
    model.reset_reference()
    assert model.reference_version != before and model.policy_is_reference()


def test_tied_weights_answer_as_before_training_at_all_their_places(micro_checkpoint, batch):
    policy = load_checkpoint(micro_checkpoint)
    set_trainable(policy, dict(projector='full'))
    # Two layers that share their weight, as an output head may share the embedding's.
    policy.text_hidden_fcs.append(torch.nn.Linear(*policy.text_hidden_fcs[2].weight.shape))
    policy.text_hidden_fcs.append(torch.nn.Linear(policy.text_hidden_fcs[2].out_features,
                                                  policy.text_hidden_fcs[2].out_features))
    policy.text_hidden_fcs[-2] = policy.text_hidden_fcs[-1]
    twin = torch.nn.Linear(policy.text_hidden_fcs[-1].in_features, policy.text_hidden_fcs[-1].out_features)
    twin.weight = policy.text_hidden_fcs[-1].weight
    policy.text_hidden_fcs.append(twin)
    reference = build_reference('initial', policy)
    with torch.no_grad():
        before = policy(batch).low_res
        for parameter in policy.text_hidden_fcs.parameters():
            parameter.mul_(1.5)
        assert not torch.allclose(policy(batch).low_res, before)
    assert torch.equal(reference(policy, batch).low_res, before)
    assert twin.weight is policy.text_hidden_fcs[-2].weight


def test_an_interrupted_reference_pass_leaves_the_policy_as_it_was(micro_checkpoint, batch, monkeypatch):
    policy, reference, _ = trained(micro_checkpoint, 'initial', batch)
    parameters, state = dict(policy.named_parameters()), copy.deepcopy(policy.state_dict())

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(policy, 'decode', fail)
    with pytest.raises(KeyboardInterrupt):
        reference(policy, batch)
    assert all(p is parameters[name] for name, p in policy.named_parameters())
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in state.items())
    assert policy.training and not any(layer.disable_adapters for _, layer in lora_layers(policy))
