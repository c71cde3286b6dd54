"""Both tested transformers compute the same thing: frequencies, and where the [SEG] state is taken."""
import json

import pytest
import torch
from PIL import Image

from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.models.checkpoint.layout import empty_weights
from sa2va_dpo.models.mllm import build_mllm
from sa2va_dpo.models.variants import RELEASED


@pytest.mark.parametrize('name', RELEASED)
@pytest.mark.parametrize('form', ['rope_theta', 'rope_parameters'])
def test_rotary_frequencies_are_those_of_the_configuration(name, form):
    """4.57 and 5.x read them from other fields, and drop without a word what they do not read."""
    config = json.loads(json.dumps(RELEASED[name]))
    text = config[section := 'llm_config' if 'llm_config' in config else 'text_config']
    # A value that is nobody's default.
    theta = text['rope_theta'] = 12345.0
    head = text.get('head_dim') or text['hidden_size'] // text['num_attention_heads']
    expected = theta ** -(torch.arange(0, head, 2).float() / head)
    if form == 'rope_parameters':
        scaling = dict(text.pop('rope_scaling', None) or {})
        scaling.pop('type', None)
        config[section] = dict(text, rope_parameters=dict(scaling, rope_theta=text.pop('rope_theta'),
                                                          rope_type=scaling.get('rope_type', 'default')))
    with empty_weights():
        decoder = build_mllm(config).language_model
    assert decoder.rotary_emb.inv_freq.allclose(expected)


@pytest.fixture(params=['internvl_qwen2', 'qwen2_5_vl', 'qwen3_vl'])
def fixture_dir(request, shared_dir):
    return shared_dir / 'fixtures/sa2va_parity' / request.param


def test_the_state_at_seg_is_what_the_last_decoder_layer_gave(fixture_dir):
    """A hook on the layer itself knows no library's convention: Qwen3-VL's state is its output, the others' is that
    after the decoder's norm."""
    model, pre = load_checkpoint(fixture_dir), Sa2VAPreprocessor.from_pretrained(fixture_dir)
    decoder = model.mllm.language_model
    seen = []
    layer = decoder.layers[-1].register_forward_hook(
        lambda module, args, output: seen.append(output if isinstance(output, torch.Tensor) else output[0]))
    with torch.no_grad():
        hidden = model.mllm(pre.collate([pre(Image.open(fixture_dir / 'image.png'), 'Vessel?')]))
        layer.remove()
        before, after = seen[0], (decoder.norm if fixture_dir.name != 'qwen3_vl' else model.mllm.final_norm)(seen[0])
        expected, other = (before, after) if fixture_dir.name == 'qwen3_vl' else (after, before)
    assert len(seen) == 1 and torch.equal(hidden, expected) and (hidden - other).abs().max() > 0.1
