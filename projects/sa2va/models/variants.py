"""The configurations of the thirteen released Sa2VA checkpoints, as far as they decide tensors and arithmetic.

Sources. Which base each one has: the model zoo table of the Sa2VA repository (projects/sa2va/README.md). Sizes: the
``config.json`` of the base model on the Hugging Face hub (OpenGVLab/InternVL2_5-*, OpenGVLab/InternVL3-*,
internlm/internlm2_5-7b-chat and -20b-chat, OpenGVLab/InternViT-300M-448px-V2_5 and InternViT-6B-448px-V2_5,
Qwen/Qwen2.5-*, Qwen/Qwen2.5-VL-*-Instruct, Qwen/Qwen3-VL-*-Instruct, llava-hf/llava-1.5-7b-hf). Vocabulary: Sa2VA sets
it to the length of its tokenizer, which is the base tokenizer and five added tokens ([SEG], <p>, </p>, <vp>, </vp>):
151674 + 5 (InternVL with Qwen2.5), 92553 + 5 (InternVL with InternLM2), 151665 + 5 (Qwen2.5-VL), 151669 + 5
(Qwen3-VL), 32002 + 5 (LLaVA). The totals of the thirteen are those that the hub states
(tests/unit/models/test_variants.py), the 8B InternVL3 one, 8 182 606 130 parameters, also that in the index file of a
real checkpoint. Qwen checkpoints are released with embedding and vocabulary head untied (tools/convert_to_hf.py of the
Sa2VA repository).
"""
from __future__ import annotations

import difflib

from sa2va_dpo.common.errors import InputError

_VIT_300M = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                 qkv_bias=True, qk_normalization=False, norm_type='layer_norm', layer_norm_eps=1e-6,
                 hidden_act='gelu', image_size=448, patch_size=14)
_VIT_6B = dict(_VIT_300M, hidden_size=3200, intermediate_size=12800, num_hidden_layers=45, num_attention_heads=25,
               qkv_bias=False, qk_normalization=True, norm_type='rms_norm')


def _internvl(llm: dict, vision: dict = _VIT_300M) -> dict:
    return dict(model_type='sa2va_chat', architectures=['Sa2VAChatModel'], llm_config=llm, vision_config=vision,
                downsample_ratio=0.5, force_image_size=448, ps_version='v2', select_layer=-1, min_dynamic_patch=1,
                max_dynamic_patch=12, use_thumbnail=True)


def _qwen2(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict:
    return dict(architectures=['Qwen2ForCausalLM'], model_type='qwen2', vocab_size=151679, hidden_size=hidden,
                intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=kv_heads, rms_norm_eps=1e-6, rope_theta=1e6, max_position_embeddings=32768,
                hidden_act='silu', tie_word_embeddings=False)


def _internlm2(hidden: int, intermediate: int, layers: int, heads: int, rope_theta: float, factor: float) -> dict:
    return dict(architectures=['InternLM2ForCausalLM'], model_type='internlm2', vocab_size=92558, hidden_size=hidden,
                intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=rope_theta, max_position_embeddings=32768,
                rope_scaling=dict(type='dynamic', factor=factor), hidden_act='silu', bias=False,
                tie_word_embeddings=False)


def _qwen2_5_vl(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict:
    return dict(
        model_type='sa2va_chat', architectures=['Sa2VAChatModelQwen'], tie_word_embeddings=False,
        text_config=dict(model_type='qwen2_5_vl_text', vocab_size=151670, hidden_size=hidden,
                         intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
                         num_key_value_heads=kv_heads, rms_norm_eps=1e-6, rope_theta=1e6,
                         max_position_embeddings=128000, hidden_act='silu', tie_word_embeddings=False,
                         rope_scaling=dict(type='mrope', mrope_section=[16, 24, 24])),
        vision_config=dict(model_type='qwen2_5_vl', depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16,
                           patch_size=14, spatial_merge_size=2, temporal_patch_size=2, window_size=112,
                           fullatt_block_indexes=[7, 15, 23, 31], out_hidden_size=hidden, hidden_act='silu'))


def _qwen3_vl(hidden: int, intermediate: int, layers: int, heads: int) -> dict:
    return dict(
        model_type='sa2va_chat', architectures=['Sa2VAChatModelQwen'], tie_word_embeddings=False,
        text_config=dict(model_type='qwen3_vl_text', vocab_size=151674, hidden_size=hidden,
                         intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
                         num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-6, rope_theta=5e6,
                         max_position_embeddings=262144, attention_bias=False, hidden_act='silu',
                         tie_word_embeddings=False,
                         rope_scaling=dict(rope_type='default', mrope_interleaved=True, mrope_section=[24, 20, 20])),
        vision_config=dict(model_type='qwen3_vl', depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16,
                           patch_size=16, spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=2304,
                           deepstack_visual_indexes=[5, 11, 17], out_hidden_size=hidden,
                           hidden_act='gelu_pytorch_tanh'))


RELEASED: dict[str, dict] = {
    'Sa2VA-1B': _internvl(_qwen2(896, 4864, 24, 14, 2)),
    'Sa2VA-4B': _internvl(_qwen2(2048, 11008, 36, 16, 2)),
    'Sa2VA-8B': _internvl(_internlm2(4096, 14336, 32, 32, 1e6, 2.0)),
    'Sa2VA-26B': _internvl(_internlm2(6144, 16384, 48, 48, 5e7, 2.5), _VIT_6B),
    'Sa2VA-InternVL3-2B': _internvl(_qwen2(1536, 8960, 28, 12, 2)),
    'Sa2VA-InternVL3-8B': _internvl(_qwen2(3584, 18944, 28, 28, 4)),
    'Sa2VA-InternVL3-14B': _internvl(_qwen2(5120, 13824, 48, 40, 8)),
    'Sa2VA-Qwen2_5-VL-3B': _qwen2_5_vl(2048, 11008, 36, 16, 2),
    'Sa2VA-Qwen2_5-VL-7B': _qwen2_5_vl(3584, 18944, 28, 28, 4),
    'Sa2VA-Qwen3-VL-2B': _qwen3_vl(2048, 6144, 28, 16),
    'Sa2VA-Qwen3-VL-4B': _qwen3_vl(2560, 9728, 36, 32),
    'Sa2VA-Qwen3-VL-4B-SAM3': _qwen3_vl(2560, 9728, 36, 32),
    'Sa2VA-LLaVA-1.5-7B': dict(
        model_type='sa2va_chat', architectures=['Sa2VAChatModelLlava'], template='vicuna', tie_word_embeddings=False,
        vocab_size=32007, image_token_index=32000, image_seq_length=576, projector_hidden_act='gelu',
        vision_feature_layer=-2, vision_feature_select_strategy='default',
        text_config=dict(model_type='llama', vocab_size=32007, hidden_size=4096, intermediate_size=11008,
                         num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, rms_norm_eps=1e-5,
                         rope_theta=1e4, max_position_embeddings=4096, hidden_act='silu', tie_word_embeddings=False),
        vision_config=dict(model_type='clip_vision_model', hidden_size=1024, intermediate_size=4096,
                           num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14,
                           hidden_act='quick_gelu', layer_norm_eps=1e-5)),
}

# Sizes of the model that draws the mask, where they are not SAM2's (released checkpoints state none: the names of their
# tensors tell).
GROUNDING: dict[str, dict] = {'Sa2VA-Qwen3-VL-4B-SAM3': dict(kind='sam3')}


def released_name(name: str) -> str:
    """The released model that somebody means: ``8B``, ``InternVL3-8B`` and ``Sa2VA-InternVL3-8B`` are all spelled out.

    Raises:
        InputError: there is none; names the nearest.
    """
    short = {full.removeprefix('Sa2VA-').lower(): full for full in RELEASED}
    found = short.get(name.lower().removeprefix('sa2va-'))
    if found is None:
        near = difflib.get_close_matches(name.lower(), short, n=1, cutoff=0.7)
        raise InputError(f'{name}: no released Sa2VA has this size: '
                         + (f'did you mean {short[near[0]]}?' if near else f'there are {", ".join(RELEASED)}'))
    return found
