"""What moves: switches, LoRA injection, merging, parameter groups."""
import pytest
import torch

from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.models.trainable import (
    PARTS,
    adapters_disabled,
    lora_layers,
    merge_adapters,
    parameter_groups,
    part_of,
    set_trainable,
)

RECIPE = dict(llm=dict(mode='lora', r=4), sam2_encoder=dict(mode='lora', r=4, lr_mult=0.5), projector='full',
              mask_decoder='full')


@pytest.fixture()
def policy(micro_checkpoint):
    return load_checkpoint(micro_checkpoint)


@pytest.fixture(scope='module')
def batch(micro_checkpoint):
    import numpy as np

    pre = Sa2VAPreprocessor.from_pretrained(micro_checkpoint)
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    return pre.collate([pre(image, '<image>Please segment the blood vessels.')])


def randomise_adapters(policy):
    for name, parameter in policy.named_parameters():
        if 'lora_B' in name:
            torch.nn.init.normal_(parameter, std=0.05)


def test_only_the_named_parts_are_open(policy):
    set_trainable(policy, RECIPE)
    for name, parameter in policy.named_parameters():
        expected = 'lora_' in name or part_of(name) in ('projector', 'mask_decoder')
        assert parameter.requires_grad == expected, name
    assert any('mllm.language_model' in n for n, _ in lora_layers(policy))
    assert any('sam2.vision_encoder.backbone' in n for n, _ in lora_layers(policy))


def test_heads_without_gradient_are_not_part_of_the_decoder():
    assert part_of('sam2.mask_decoder.iou_prediction_head.proj_in.weight') == 'iou_head'
    assert part_of('sam2.mask_decoder.conv_s0.weight') == 'mask_decoder'
    assert part_of('sam2.no_memory_embedding') is None


def test_new_adapters_change_nothing_and_gradients_reach_every_open_tensor(policy, batch):
    before = policy(batch).low_res
    set_trainable(policy, RECIPE)
    output = policy(batch)
    torch.testing.assert_close(output.low_res, before, rtol=0, atol=1e-5)
    randomise_adapters(policy)
    policy(batch).hypotheses.square().sum().backward()
    unreached = [name for name, p in policy.named_parameters()
                 if p.requires_grad and p.grad is None and name not in policy.unused_by_masks()]
    assert unreached == []
    dead = [name for name, p in policy.named_parameters() if p.requires_grad and 'lora_' in name and not p.grad.any()]
    assert dead == []


def test_merged_adapters_answer_as_the_injected_ones(policy, batch):
    names = set(policy.state_dict())
    set_trainable(policy, RECIPE)
    randomise_adapters(policy)
    with torch.no_grad():
        injected = policy(batch).low_res
        with adapters_disabled([layer for _, layer in lora_layers(policy)]):
            base = policy(batch).low_res
        assert (injected - base).abs().max() > 1e-3
        merge_adapters(policy)
        assert set(policy.state_dict()) == names
        torch.testing.assert_close(policy(batch).low_res, injected, rtol=0, atol=1e-4)


def test_disabled_adapters_come_back_trainable(policy, batch):
    set_trainable(policy, RECIPE)
    flags = {name: p.requires_grad for name, p in policy.named_parameters()}
    with adapters_disabled([layer for _, layer in lora_layers(policy)]):
        pass
    assert flags == {name: p.requires_grad for name, p in policy.named_parameters()}


def test_groups_hold_every_open_parameter_once(policy):
    groups = parameter_groups(policy, set_trainable(policy, RECIPE))
    names = [name for group in groups for name, _ in group['params']]
    assert sorted(names) == sorted(name for name, p in policy.named_parameters() if p.requires_grad)
    assert {group['part']: group['lr_mult'] for group in groups}['sam2_encoder'] == 0.5


def test_all_opens_everything(policy):
    groups = parameter_groups(policy, set_trainable(policy, 'all'))
    assert sum(len(group['params']) for group in groups) == len(list(policy.parameters()))


@pytest.mark.parametrize('spec, words', [
    ({'llmm': 'lora'}, 'unknown part llmm'),
    ({'llm': 'adapter'}, "mode is 'adapter'"),
    ({'projector': 'lora'}, 'train it with mode "full"'),
    ({'llm': dict(mode='lora', rank=8)}, 'rank is no field'),
    ({'llm': 'frozen'}, 'nothing to train'),
    ('everything', 'must be "all"'),
    ({'llm': dict(mode='lora', targets=('nothing',))}, 'no linear layer'),
])
def test_unsupported_settings_say_why(policy, spec, words):
    with pytest.raises(ValueError, match='trainable') as error:
        set_trainable(policy, spec)
    assert words in str(error.value)


def test_every_part_exists(policy):
    set_trainable(policy, dict(refinement='full'))
    for path in PARTS.values():
        policy.get_submodule(path)
