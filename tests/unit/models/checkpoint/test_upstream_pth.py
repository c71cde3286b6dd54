"""Upstream trainer checkpoints, made here with peft itself, against peft's own merge."""
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from sa2va_dpo.commands.convert import main
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.models.checkpoint.upstream_pth import convert, released_name

ALPHA, RANK = 6, 4


@pytest.fixture(scope='module')
def base(shared_dir):
    return shared_dir / 'fixtures/sa2va_parity/internvl_qwen2'


@pytest.fixture(scope='module')
def trained(base):
    """(what the trainer saves, released tensors it means): LoRA, modules_to_save, projectors and the mask decoder."""
    released = load_file(base / 'model.safetensors')
    config = json.loads((base / 'config.json').read_text())['llm_config']
    language_model = Qwen2ForCausalLM(Qwen2Config(**{k: config[k] for k in (
        'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
        'num_key_value_heads')}))
    prefix = 'language_model.'
    language_model.load_state_dict({k[len(prefix):]: v for k, v in released.items() if k.startswith(prefix)})
    language_model = get_peft_model(language_model, LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=['q_proj', 'down_proj'], modules_to_save=['embed_tokens', 'lm_head']))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in language_model.named_parameters():
            if 'lora_' in name or 'modules_to_save' in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    state = {f'mllm.model.language_model.{k}': v.clone() for k, v in language_model.state_dict().items()
             if 'lora_' in k or 'modules_to_save.default' in k or 'original_module' in k}
    expected = dict(released)
    for key in [
        k for k in released if k.startswith(('mlp1.', 'text_hidden_fcs.', 'grounding_encoder.sam2_model.sam_mask'))
    ]:
        expected[key] = released[key] + torch.randn(released[key].shape, generator=generator)
        state[('mllm.model.' if key.startswith('mlp1.') else '') + key] = expected[key]
    merged = language_model.merge_and_unload().state_dict()
    expected.update({prefix + k: v for k, v in merged.items()})
    return state, expected


def save(path, state, **more):
    torch.save(dict(state_dict=state, **more), path)
    return path


def test_everything_lands_where_peft_puts_it(trained, base, tmp_path):
    state, expected = trained
    meta = dict(cfg=f'llm_lora=dict(r={RANK}, lora_alpha={ALPHA}, lora_dropout=0.05)', iter=7)
    report = convert(save(tmp_path / 'iter_7.pth', state, meta=meta), base, tmp_path / 'out')
    out = load_file(tmp_path / 'out/model.safetensors')
    assert out.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(out[key], tensor, atol=1e-6, rtol=1e-5, msg=key)
    assert report['counts']['LoRA merged'] == 4 and report['counts']['modules_to_save'] == 2
    assert sum(report['counts'].values()) == len(out)
    assert len(report['superseded']) == 2 and all('original_module' in k for k in report['superseded'])
    assert 'LoRA r=4 alpha=6' in report['tensors']['language_model.model.layers.0.self_attn.q_proj.weight']
    load_checkpoint(tmp_path / 'out')


def test_only_the_named_tensors_change(trained, base, tmp_path):
    state = {k: v for k, v in trained[0].items() if k.startswith('text_hidden_fcs.')}
    report = convert(save(tmp_path / 'a.pth', state), base, tmp_path / 'out')
    before, after = load_file(base / 'model.safetensors'), load_file(tmp_path / 'out/model.safetensors')
    assert {k for k in before if not torch.equal(before[k], after[k])} == set(state)
    assert report['counts'] == {'trained': len(state), 'base': len(before) - len(state)}


@pytest.mark.parametrize('damage, said', [
    (lambda s: s.update({'mllm.model.stranger.weight': torch.zeros(1)}), 'no place'),
    (lambda s: s.pop(next(k for k in s if 'lora_B' in k)), 'no partner'),
    (lambda s: s.update({'text_hidden_fcs.0.bias': torch.zeros(3)}), 'shape'),
    (lambda s: s.update({next(k for k in s if 'lora_A' in k): torch.zeros(4, 5)}), 'do not fit'),
])
def test_nothing_is_dropped_or_bent(trained, base, tmp_path, damage, said):
    state = dict(trained[0])
    damage(state)
    with pytest.raises(InputError, match=said):
        convert(save(tmp_path / 'a.pth', state), base, tmp_path / 'out', lora_alpha=ALPHA)
    assert not (tmp_path / 'out').exists()


def test_alpha_must_be_known(trained, base, tmp_path):
    with pytest.raises(InputError, match='--lora-alpha'):
        convert(save(tmp_path / 'a.pth', trained[0]), base, tmp_path / 'out')
    two = dict(cfg='dict(lora_alpha=8), dict(lora_alpha=16)')
    with pytest.raises(InputError, match='--lora-alpha'):
        convert(save(tmp_path / 'a.pth', trained[0], meta=two), base, tmp_path / 'out')


def test_rank_stabilised_scaling(trained, base, tmp_path):
    name = 'language_model.model.layers.1.mlp.down_proj'
    stem = f'mllm.model.{name.replace("language_model.", "language_model.base_model.model.")}'
    a, b = (trained[0][f'{stem}.lora_{x}.default.weight'] for x in 'AB')
    convert(save(tmp_path / 'a.pth', trained[0]), base, tmp_path / 'out', lora_alpha=ALPHA, rslora=True)
    out, old = (load_file(d / 'model.safetensors')[name + '.weight'] for d in (tmp_path / 'out', base))
    torch.testing.assert_close(out, old + ALPHA / 2 * b @ a)  # sqrt(4) = 2


@pytest.mark.parametrize('key, qwen, name', [
    ('mllm.model.base_model.model.model.language_model.layers.3.mlp.up_proj.weight', True,
     'model.model.language_model.layers.3.mlp.up_proj.weight'),
    ('mllm.model.base_model.model.lm_head.weight', True, 'model.lm_head.weight'),
    ('mllm.model.language_model.base_model.model.model.layers.3.attention.wqkv.base_layer.weight', False,
     'language_model.model.layers.3.attention.wqkv.weight'),
    ('grounding_encoder.sam2_model.memory_encoder.fuser.layers.0.gamma', False,
     'grounding_encoder.sam2_model.memory_encoder.fuser.layers.0.g_weight'),
    ('module.text_hidden_fcs.0.weight', False, 'text_hidden_fcs.0.weight'),
])
def test_names(key, qwen, name):
    assert released_name(key, qwen) == name


def test_command_writes_the_report(trained, base, tmp_path, capsys):
    pth = save(tmp_path / 'a.pth', trained[0])
    assert main([str(pth), str(base), str(tmp_path / 'out'), '--lora-alpha', str(ALPHA), '--report',
                 str(tmp_path / 'r.json')]) == 0
    printed = capsys.readouterr().out
    assert 'LoRA merged' in printed and 'superseded' in printed
    assert json.loads((tmp_path / 'r.json').read_text())['counts']['LoRA merged'] == 4


class _Evil:
    def __reduce__(self):
        return nn.Linear, (1, 1)


def test_pickle_with_code_is_refused(base, tmp_path):
    with pytest.raises(InputError):
        convert(save(tmp_path / 'a.pth', {'x': _Evil()}), base, tmp_path / 'out')
