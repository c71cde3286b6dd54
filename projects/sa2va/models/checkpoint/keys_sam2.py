"""SAM2: names in ``transformers.Sam2Model`` against names in released checkpoints.

SAM 2: Ravi et al., "SAM 2: Segment Anything in Images and Videos", arXiv 2408.00714.
"""
from __future__ import annotations

import re
from typing import Iterable, Mapping

from .keys import KeyGroup, join_rows, rename, repeat, substitute

PREFIX = 'grounding_encoder.sam2_model.'

_ENCODER = (('vision_encoder.backbone.', 'image_encoder.trunk.'),
            ('vision_encoder.neck.', 'image_encoder.neck.'),
            ('patch_embed.projection', 'patch_embed.proj'),
            ('layer_norm1', 'norm1'), ('layer_norm2', 'norm2'),
            ('mlp.proj_in', 'mlp.layers.0'), ('mlp.proj_out', 'mlp.layers.1'))
_DECODER = (('mask_decoder.', 'sam_mask_decoder.'),
            ('upscale_conv1', 'output_upscaling.0'), ('upscale_layer_norm', 'output_upscaling.1'),
            ('upscale_conv2', 'output_upscaling.3'),
            ('layer_norm_final_attn', 'norm_final_attn'), ('layer_norm', 'norm'), ('o_proj', 'out_proj'),
            ('mlp.proj_in', 'mlp.layers.0'), ('mlp.proj_out', 'mlp.layers.1'))
_PROMPT = (('prompt_encoder.', 'sam_prompt_encoder.'),
           ('mask_embed.conv1', 'mask_downscaling.0'), ('mask_embed.layer_norm1', 'mask_downscaling.1'),
           ('mask_embed.conv2', 'mask_downscaling.3'), ('mask_embed.layer_norm2', 'mask_downscaling.4'),
           ('mask_embed.conv3', 'mask_downscaling.6'))
_HEAD = re.compile(r'(.*(?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head))\.'
                   r'(proj_in|proj_out|layers\.(\d+))\.(weight|bias)$')
_FOURIER = 'positional_embedding'
_POINTS = 'prompt_encoder.point_embed.weight'


def _released(name: str, head_depths: Mapping[str, int]) -> str:
    """Released name (without prefix) of one of our one-to-one tensors."""
    if name == 'no_memory_embedding':
        return 'no_mem_embed'
    if name.startswith('vision_encoder.'):
        name = re.sub(r'(neck\.convs\.\d+)\.', r'\1.conv.', name)
        return substitute(name, _ENCODER)
    if name.startswith('prompt_encoder.'):
        return substitute(name, _PROMPT)
    head = _HEAD.match(name)
    if head:
        stem, part, middle, leaf = head.groups()
        number = 0 if part == 'proj_in' else head_depths[stem] + 1 if part == 'proj_out' else int(middle) + 1
        return f'{substitute(stem, _DECODER)}.layers.{number}.{leaf}'
    return substitute(name, _DECODER)


def sam2_groups(names: Iterable[str], num_point_embeddings: int = 4) -> list[KeyGroup]:
    """One group per tensor of ``Sam2Model``.

    Args:
        names: keys of ``Sam2Model.state_dict()``.
    """
    names = list(names)
    depths: dict[str, int] = {}
    for name in names:
        head = _HEAD.match(name)
        if head:
            inner = int(head.group(3)) + 1 if head.group(3) else 0
            depths[head.group(1)] = max(depths.get(head.group(1), 0), inner)
    groups = []
    for name in names:
        if name.endswith(_FOURIER):
            continue
        if name == _POINTS:
            groups.append(join_rows([f'{PREFIX}sam_prompt_encoder.point_embeddings.{i}.weight'
                                     for i in range(num_point_embeddings)], 'sam2.' + name))
        else:
            groups.append(rename(PREFIX + _released(name, depths), 'sam2.' + name))
    groups.append(repeat(PREFIX + 'sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix',
                         ['sam2.' + n for n in names if n.endswith(_FOURIER)]))
    return groups


def video_memory_shapes(dims: Mapping) -> dict[str, tuple[int, ...]]:
    """Released key -> shape of the tensors that only video needs; a single image never reads them.

    They are carried through an export unchanged. Sizes that SAM 2 fixes in code (mask downsampler widths, two fuser
    blocks of kernel 7) are fixed here too.
    """
    c, m, ffn = dims['hidden_dim'], dims['mem_dim'], dims['memory_attention_ffn']
    shapes: dict[str, tuple[int, ...]] = {
        'maskmem_tpos_enc': (dims['num_maskmem'], 1, 1, m), 'no_mem_pos_enc': (1, 1, c), 'no_obj_ptr': (1, c),
    }

    def layer(name: str, *weight: int) -> None:
        shapes[name + '.weight'] = weight
        shapes[name + '.bias'] = (weight[0],)

    layer('mask_downsample', 1, 1, 4, 4)
    for i in range(dims['memory_attention_layers']):
        for attention, kv in (('self_attn', c), ('cross_attn_image', m)):
            base = f'memory_attention.layers.{i}.{attention}'
            layer(f'{base}.q_proj', c, c)
            layer(f'{base}.k_proj', c, kv)
            layer(f'{base}.v_proj', c, kv)
            layer(f'{base}.out_proj', c, c)
        layer(f'memory_attention.layers.{i}.linear1', ffn, c)
        layer(f'memory_attention.layers.{i}.linear2', c, ffn)
        for n in (1, 2, 3):
            layer(f'memory_attention.layers.{i}.norm{n}', c)
    layer('memory_attention.norm', c)
    widths = (1, 4, 16, 64, 256)
    for i in range(4):
        layer(f'memory_encoder.mask_downsampler.encoder.{3 * i}', widths[i + 1], widths[i], 3, 3)
        layer(f'memory_encoder.mask_downsampler.encoder.{3 * i + 1}', widths[i + 1])
    layer('memory_encoder.mask_downsampler.encoder.12', c, widths[-1], 1, 1)
    layer('memory_encoder.pix_feat_proj', c, c, 1, 1)
    for i in range(2):
        base = f'memory_encoder.fuser.layers.{i}'
        shapes[f'{base}.g_weight'] = (c,)
        layer(f'{base}.dwconv', c, 1, 7, 7)
        layer(f'{base}.norm', c)
        layer(f'{base}.pwconv1', 4 * c, c)
        layer(f'{base}.pwconv2', c, 4 * c)
    layer('memory_encoder.out_proj', m, c, 1, 1)
    for i in range(3):
        layer(f'obj_ptr_proj.layers.{i}', c, c)
    return {PREFIX + name: shape for name, shape in shapes.items()}
