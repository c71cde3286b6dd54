"""Key tables of the thirteen released variants against counts and sizes worked out by hand and stated by the hub."""
import json
import math

import pytest

from sa2va_dpo.models.checkpoint import released_shapes
from sa2va_dpo.models.sam3 import Sam3TrackerModel
from sa2va_dpo.models.variants import GROUNDING, RELEASED

# SAM2 Hiera-L of a real checkpoint: tensors and numbers in them (224.4 M parameters and the 2 x 128 Fourier matrix).
SAM2_TENSORS, VIDEO_ONLY = 900, 157

# What the hub's interface states for each released repository. It counts the numbers in the files, and for all but the
# first four takes the parameters that the index file states, which leave the Fourier matrix, a buffer, out.
HUB_TOTALS = {
    'Sa2VA-1B': 1_163_665_714, 'Sa2VA-4B': 3_941_809_714, 'Sa2VA-8B': 8_317_666_866, 'Sa2VA-26B': 25_778_005_938,
    'Sa2VA-InternVL3-2B': 2_316_157_234, 'Sa2VA-InternVL3-8B': 8_182_606_130, 'Sa2VA-InternVL3-14B': 15_369_268_530,
    'Sa2VA-Qwen2_5-VL-3B': 4_293_849_394, 'Sa2VA-Qwen2_5-VL-7B': 8_527_538_994, 'Sa2VA-Qwen3-VL-2B': 2_666_774_834,
    'Sa2VA-Qwen3-VL-4B': 5_057_072_434, 'Sa2VA-Qwen3-VL-4B-SAM3': 5_306_227_586, 'Sa2VA-LLaVA-1.5-7B': 7_305_220_402,
}


def text_fcs(d):
    return 4, d * d + d + d * 256 + 256


def intern_vit(c):
    d, f, n = c['hidden_size'], c['intermediate_size'], c['num_hidden_layers']
    bias, norms = int(c['qkv_bias']), 2 if c['norm_type'] == 'layer_norm' else 1
    keys = 4 + n * (1 + bias + 2 + 4 + 2 * norms + 2 + 2 * c['qk_normalization'])
    layer = 3 * d * d + bias * 3 * d + d * d + d + 2 * d * f + f + d + 2 * norms * d + 2 * d
    layer += 2 * d * c['qk_normalization']
    return keys, 3 * 14 * 14 * d + d + d + (32 * 32 + 1) * d + n * layer


def clip(c):
    """Class token, patches without bias, positions, a norm before and one after, blocks of four projections, two norms
    and two layers, all with bias."""
    d, f, n = c['hidden_size'], c['intermediate_size'], c['num_hidden_layers']
    block = 4 * (d * d + d) + 2 * 2 * d + 2 * d * f + f + d
    patches = (c['image_size'] // c['patch_size']) ** 2
    return 3 + 4 + 16 * n, d + 3 * 14 * 14 * d + (patches + 1) * d + 4 * d + n * block


def llava_projector(text, vision):
    d, e = text['hidden_size'], vision['hidden_size']
    return 4, e * d + d + d * d + d


def sam3():
    """SAM 3's tracker: image encoder, two necks of four levels, SAM2's heads, and a video memory that has two linear
    layers and one vector more than SAM2's."""
    d, f, n, c, m = 1024, 4736, 32, 256, 64
    trunk = (4 + 12 * n, 577 * d + 3 * 14 * 14 * d + 2 * d + n * (4 * (d * d + d) + 4 * d + 2 * d * f + f + d))
    up4, up2 = (4 * d * d // 2 + d // 2) + (4 * d // 2 * d // 4 + d // 4), 4 * d * d // 2 + d // 2
    last = 4 * (9 * c * c + c) + 4 * c + c * (d // 4 + d // 2 + d + d)
    necks = (2 * (4 * 4 + 4 + 2), 2 * (up4 + up2 + last))
    return trunk, necks, (3, m + m * c + m)


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
    if text['model_type'] == 'llama':
        return [clip(vision), llava_projector(text, vision), decoder(text, 0), text_fcs(text['hidden_size'])]
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


def shapes_of_release(name):
    if name in GROUNDING and Sam3TrackerModel is None:
        pytest.skip('SAM 3 exists from transformers 5 on: run tests/run_next.sh')
    return released_shapes(RELEASED[name], GROUNDING.get(name))


@pytest.mark.parametrize('name', RELEASED)
def test_key_table_is_complete(name, sam2_total, shared_dir):
    shapes, parts = shapes_of_release(name), expected(RELEASED[name])
    keys, numbers = SAM2_TENSORS, sam2_total
    if name in GROUNDING:
        # SAM2 without its image encoder, with another.
        known = json.loads((shared_dir / 'fixtures/released_checkpoint_keys/sam2_hiera_large.json').read_text())
        encoder = {k: math.prod(v) for k, v in known.items() if '.image_encoder.' in k}
        keys += sum(k for k, _ in sam3()) - len(encoder)
        numbers += sum(n for _, n in sam3()) - sum(encoder.values())
        assert keys == 741
    assert len(shapes) == sum(keys for keys, _ in parts) + keys
    assert sum(math.prod(s) for s in shapes.values()) == sum(numbers for _, numbers in parts) + numbers
    assert all(isinstance(x, int) and x > 0 for s in shapes.values() for x in s)


@pytest.mark.parametrize('name', RELEASED)
def test_totals_are_those_of_the_hub(name):
    buffer = 0 if name in ('Sa2VA-1B', 'Sa2VA-4B', 'Sa2VA-8B', 'Sa2VA-26B') else 2 * 128
    assert sum(math.prod(s) for s in shapes_of_release(name).values()) - buffer == HUB_TOTALS[name]


def test_thirteen_variants():
    assert len(RELEASED) == 13 and set(HUB_TOTALS) == set(RELEASED) and set(GROUNDING) <= set(RELEASED)


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
