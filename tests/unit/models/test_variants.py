"""Key tables of the ten released variants against counts and sizes worked out by hand from their configurations."""
import json
import math

import pytest

from sa2va_dpo.models.checkpoint import released_shapes
from sa2va_dpo.models.variants import RELEASED

# SAM2 Hiera-L of a real checkpoint: tensors and numbers in them (224.4 M parameters and the 2 x 128 Fourier matrix).
SAM2_TENSORS, VIDEO_ONLY = 900, 157


def text_fcs(d):
    return 4, d * d + d + d * 256 + 256


def intern_vit(c):
    d, f, n = c['hidden_size'], c['intermediate_size'], c['num_hidden_layers']
    bias, norms = int(c['qkv_bias']), 2 if c['norm_type'] == 'layer_norm' else 1
    keys = 4 + n * (1 + bias + 2 + 4 + 2 * norms + 2 + 2 * c['qk_normalization'])
    layer = 3 * d * d + bias * 3 * d + d * d + d + 2 * d * f + f + d + 2 * norms * d + 2 * d
    layer += 2 * d * c['qk_normalization']
    return keys, 3 * 14 * 14 * d + d + d + (32 * 32 + 1) * d + n * layer


def decoder(c, qkv_bias, fused=False, qk_norm=False):
    d, f, n, v = c['hidden_size'], c['intermediate_size'], c['num_hidden_layers'], c['vocab_size']
    head = c.get('head_dim', d // c['num_attention_heads'])
    q, kv = head * c['num_attention_heads'], head * c['num_key_value_heads']
    per_layer = (2 if fused else 4 + 3 * qkv_bias) + 3 + 2 + 2 * qk_norm
    layer = 2 * d * q + 2 * d * kv + qkv_bias * (q + 2 * kv) + 3 * d * f + 2 * d + 2 * qk_norm * head
    return 3 + n * per_layer, 2 * v * d + d + n * layer


def expected(config):
    if 'llm_config' in config:
        llm, vit = config['llm_config'], config['vision_config']
        d, folded = llm['hidden_size'], 4 * vit['hidden_size']
        projector = (6, 2 * folded + folded * d + d + d * d + d)
        qwen = llm['model_type'] == 'qwen2'
        return [intern_vit(vit), projector, decoder(llm, int(qwen), fused=not qwen), text_fcs(d)]
    text, vision = config['text_config'], config['vision_config']
    d, e, f, n = text['hidden_size'], vision['hidden_size'], vision['intermediate_size'], vision['depth']
    merged = 4 * e
    if text['model_type'] == 'qwen3_vl_text':
        # patch embedding with bias, learned positions, LayerNorm blocks, one merger and three deep-stack mergers
        block = (12, 3 * e * e + 3 * e + e * e + e + 2 * e * f + f + e + 4 * e)
        merger = merged * merged + merged + merged * d + d
        mergers = (6 * 4, 4 * merger + 2 * e + 3 * 2 * merged)
        stem = (3, 3 * 2 * 16 * 16 * e + e + 2304 * e)
        language = decoder(text, 0, qk_norm=True)
    else:
        block = (12, 3 * e * e + 3 * e + e * e + e + 3 * e * f + 2 * f + e + 2 * e)
        mergers = (5, e + merged * merged + merged + merged * d + d)
        stem = (1, 3 * 2 * 14 * 14 * e)
        language = decoder(text, 1)
    vision_total = (stem[0] + n * block[0] + mergers[0], stem[1] + n * block[1] + mergers[1])
    return [vision_total, language, text_fcs(d)]


@pytest.fixture(scope='module')
def sam2_total(shared_dir):
    known = json.loads((shared_dir / 'fixtures/released_checkpoint_keys/sam2_hiera_large.json').read_text())
    assert len(known) == SAM2_TENSORS
    return sum(math.prod(s) for s in known.values())


@pytest.mark.parametrize('name', RELEASED)
def test_key_table_is_complete(name, sam2_total):
    shapes, parts = released_shapes(RELEASED[name]), expected(RELEASED[name])
    assert len(shapes) == sum(keys for keys, _ in parts) + SAM2_TENSORS
    assert sum(math.prod(s) for s in shapes.values()) == sum(numbers for _, numbers in parts) + sam2_total
    assert all(isinstance(x, int) and x > 0 for s in shapes.values() for x in s)


def test_ten_variants():
    assert len(RELEASED) == 10


def test_the_real_key_list_matches_in_full(shared_dir):
    real = json.loads((shared_dir / 'fixtures/released_checkpoint_keys/internvl3_8b_vessel.json').read_text())
    shapes = released_shapes(RELEASED['Sa2VA-InternVL3-8B'])
    assert len(real['keys']) == 1589 and sorted(shapes) == sorted(real['keys'])
    # The published total counts parameters; the Fourier matrix is a buffer.
    total = sum(math.prod(s) for s in shapes.values())
    assert total - 2 * 128 == real['metadata']['total_parameters']
    # Its bytes fit float32 weights with a bfloat16 vision tower.
    vit = sum(math.prod(s) for k, s in shapes.items() if k.startswith('vision_model.'))
    assert 4 * total - 2 * vit == real['metadata']['total_size']


def test_video_memory_is_157_tensors():
    config = RELEASED['Sa2VA-1B']
    carried = [
        k
        for k in released_shapes(config)
        if k.split('sam2_model.')[-1].split('.')[0]
        in (
            'memory_attention',
            'memory_encoder',
            'maskmem_tpos_enc',
            'no_mem_pos_enc',
            'no_obj_ptr',
            'obj_ptr_proj',
            'mask_downsample',
        )
    ]
    assert len(carried) == VIDEO_ONLY
