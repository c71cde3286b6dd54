"""The architecture of the bundled tiny checkpoint: every mechanism of a released Sa2VA at a size a laptop trains."""
from __future__ import annotations

import copy
import json
import math
import tempfile
from pathlib import Path
from typing import Iterable

from sa2va_dpo.models.checkpoint import init_checkpoint, released_shapes

# InternVL family, as the released 1B to 14B models; sizes chosen so that float32 weights stay below 16 MB.
CONFIG: dict = {
    'architectures': ['Sa2VAChatModel'],
    'auto_map': {
        'AutoConfig': 'configuration_sa2va_chat.Sa2VAChatConfig',
        'AutoModel': 'modeling_sa2va_chat.Sa2VAChatModel',
        'AutoModelForCausalLM': 'modeling_sa2va_chat.Sa2VAChatModel',
    },
    'model_type': 'sa2va_chat',
    'dtype': 'float32',
    'downsample_ratio': 0.5,
    'dynamic_image_size': True,
    'force_image_size': 112,
    'hidden_size': 96,
    'max_dynamic_patch': 12,
    'min_dynamic_patch': 1,
    'pad2square': False,
    'ps_version': 'v2',
    'select_layer': -1,
    'template': 'qwen_chat',
    'tie_word_embeddings': False,
    'use_backbone_lora': 0,
    'use_llm_lora': 0,
    'use_thumbnail': True,
    'llm_config': {
        'architectures': ['Qwen2ForCausalLM'],
        'model_type': 'qwen2',
        'attention_dropout': 0.0,
        'hidden_act': 'silu',
        'hidden_size': 96,
        'initializer_range': 0.02,
        'intermediate_size': 256,
        'max_position_embeddings': 32768,
        'max_window_layers': 4,
        'num_attention_heads': 4,
        'num_hidden_layers': 4,
        'num_key_value_heads': 2,
        'rms_norm_eps': 1e-6,
        'rope_scaling': None,
        'rope_theta': 1000000.0,
        'sliding_window': None,
        'use_cache': True,
        'use_sliding_window': False,
    },
    'vision_config': {
        'architectures': ['InternVisionModel'],
        'model_type': 'intern_vit_6b',
        'attention_dropout': 0.0,
        'drop_path_rate': 0.0,
        'dropout': 0.0,
        'hidden_act': 'gelu',
        'hidden_size': 80,
        'image_size': 112,
        'initializer_factor': 0.1,
        'initializer_range': 0.02,
        'intermediate_size': 320,
        'layer_norm_eps': 1e-6,
        'norm_type': 'layer_norm',
        'num_attention_heads': 4,
        'num_channels': 3,
        'num_hidden_layers': 4,
        'patch_size': 14,
        'qk_normalization': False,
        'qkv_bias': True,
        'use_flash_attn': False,
    },
}

SAM2_DIMS: dict = {
    'image_size': 512,
    'embed_dim': 32,
    'num_heads': 1,
    'stages': [2, 3, 4, 1],
    'global_att_blocks': [6, 8],
    'window_spec': [8, 4, 16, 8],
    'window_pos_embed_bkg_spatial_size': [7, 7],
    'hidden_dim': 96,
    'mem_dim': 16,
    'decoder_num_heads': 8,
    'decoder_mlp_dim': 256,
    'iou_head_hidden_dim': 64,
    'memory_attention_layers': 1,
    'memory_attention_ffn': 64,
    'mask_decoder_attention_downsample_rate': 2,
    'head_mul': 2.0,
    'dim_mul': 2.0,
    'q_pool_stages': 3,
    'fpn_top_down_levels': [2, 3],
    'backbone_stride': 16,
    'mlp_ratio': 4.0,
    'mask_decoder_depth': 2,
    'num_multimask_outputs': 3,
    'iou_head_depth': 3,
    'prompt_mask_in_chans': 16,
    'num_maskmem': 7,
}

# The special tokens of the released InternVL-family tokenizers, in their order.
SPECIAL_TOKENS = (
    '<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|object_ref_start|>', '<|object_ref_end|>', '<|box_start|>',
    '<|box_end|>', '<|quad_start|>', '<|quad_end|>', '<|vision_start|>', '<|vision_end|>', '<|vision_pad|>',
    '<|image_pad|>', '<|video_pad|>', '<img>', '</img>', '<IMG_CONTEXT>', '<quad>', '</quad>', '<ref>', '</ref>',
    '<box>', '</box>', '[SEG]', '<p>', '</p>', '<vp>', '</vp>')

# Sentences the byte-level vocabulary is learnt from; any other text falls back to bytes.
TOKENIZER_CORPUS = (
    'Please segment the blood vessels.', 'Please segment blood vessel in this image.',
    'Can you segment the vessels in this image?', 'Segment the coronary arteries in this angiogram.',
    'Segment the retinal vessels in this fundus image.', 'Please segment the vessel tree.', 'Sure, [SEG].',
    'It is [SEG].', 'Please respond with segmentation mask.', 'user', 'assistant', 'catheter', 'image', 'mask')


def write_tokenizer(directory: Path, more: Iterable[str] = ()) -> int:
    """Write a byte-level BPE tokenizer in Qwen2's file formats with the special tokens of the released models.

    Args:
        more: further special tokens.

    Returns:
        The vocabulary size, special tokens included.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TOKENIZER_CORPUS, trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    model = json.loads(tokenizer.to_str())['model']
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'vocab.json').write_text(json.dumps(model['vocab'], ensure_ascii=False), encoding='utf-8')
    merges = [merge if isinstance(merge, str) else ' '.join(merge) for merge in model['merges']]
    (directory / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(merges) + '\n', encoding='utf-8')
    fast = Qwen2TokenizerFast(
        vocab_file=str(directory / 'vocab.json'), merges_file=str(directory / 'merges.txt'),
        unk_token=None, bos_token=None, eos_token='<|im_end|>', pad_token='<|endoftext|>', model_max_length=12288,
        clean_up_tokenization_spaces=False)
    fast.add_tokens([AddedToken(token, special=True, normalized=False) for token in (*SPECIAL_TOKENS, *more)])
    fast.save_pretrained(directory)
    return len(fast)


def write_tiny_checkpoint(output: Path, seed: int) -> int:
    """Write the tiny architecture with random weights as a released-layout directory.

    Returns:
        The number of parameters, video-memory tensors included.
    """
    with tempfile.TemporaryDirectory() as tokenizer_dir:
        config = copy.deepcopy(CONFIG)
        config['llm_config']['vocab_size'] = write_tokenizer(Path(tokenizer_dir))
        init_checkpoint(config, SAM2_DIMS, Path(tokenizer_dir), output, seed)
    return sum(math.prod(shape) for shape in released_shapes(config, SAM2_DIMS).values())
