"""SAM 3's tracker: names in ``transformers.Sam3TrackerModel`` against names in the released checkpoint.

They lie under ``grounding_encoder.sam2_model.``, as SAM2's do. The image encoder and the video memory have names of
their own; prompt encoder and mask decoder are SAM2's but for the names of one small network.
"""
from __future__ import annotations

import re
from typing import Iterable, Mapping

import torch

from .keys import KeyGroup, rename, split_rows, substitute
from .keys_sam2 import PREFIX, sam2_groups, video_memory_shapes

_TRUNK = 'vision_encoder.backbone.'
_NECK = 'vision_encoder.neck.fpn_layers.'
_RELEASED = PREFIX + 'backbone.vision_backbone.'
_POSITIONS = _TRUNK + 'embeddings.position_embeddings'
_CLASS_POSITION = _TRUNK + 'embeddings.class_position'

_TRUNK_NAMES = (('embeddings.patch_embeddings.projection', 'patch_embed.proj'), ('layer_norm1', 'norm1'),
                ('layer_norm2', 'norm2'), ('layer_norm.', 'ln_pre.'), ('layers.', 'blocks.'),
                ('attention.o_proj', 'attn.proj'))
_QKV = re.compile(r'layers\.(\d+)\.attention\.([qkv])_proj\.(weight|bias)$')
# Position in scale_layers, by the level: the first makes two steps up, the second one, the third none.
_SCALES = {(0, 0): 'dconv_2x2_0', (0, 2): 'dconv_2x2_1', (1, 0): 'dconv_2x2'}
_SCALE = re.compile(r'(\d)\.scale_layers\.(\d)\.(weight|bias)$')
_PROJECTIONS = (('proj1', 'conv_1x1'), ('proj2', 'conv_3x3'))
_MEMORY_NAMES = (('memory_attention.', 'transformer.encoder.'), ('memory_encoder.', 'maskmem_backbone.'))


def _positions() -> KeyGroup:
    """The released table begins with the row of a class token, which no image has here."""
    return KeyGroup((_RELEASED + 'trunk.pos_embed',), ('sam2.' + _CLASS_POSITION, 'sam2.' + _POSITIONS),
                    lambda ts: [ts[0][:, :1].clone(), ts[0][:, 1:].clone()],
                    lambda ts: [torch.cat(list(ts), dim=1)])


def _trunk_groups(names: Iterable[str]) -> list[KeyGroup]:
    groups = [_positions()]
    for name in names:
        qkv = _QKV.match(name)
        if _TRUNK + name in (_POSITIONS, _CLASS_POSITION):
            continue
        if qkv is None:
            groups.append(rename(_RELEASED + 'trunk.' + substitute(name, _TRUNK_NAMES), 'sam2.' + _TRUNK + name))
        elif qkv.group(2) == 'q':
            layer, _, leaf = qkv.groups()
            groups.append(split_rows(f'{_RELEASED}trunk.blocks.{layer}.attn.qkv.{leaf}',
                                     [f'sam2.{_TRUNK}layers.{layer}.attention.{x}_proj.{leaf}' for x in 'qkv']))
    return groups


def _neck_group(name: str) -> KeyGroup:
    scale = _SCALE.match(name)
    if scale:
        level, place, leaf = scale.groups()
        released = f'{level}.{_SCALES[int(level), int(place)]}.{leaf}'
    else:
        released = substitute(name, _PROJECTIONS)
    return rename(f'{_RELEASED}sam2_convs.{released}', 'sam2.' + _NECK + name)


def sam3_groups(names: Iterable[str]) -> list[KeyGroup]:
    """One group per tensor of ``Sam3TrackerModel``.

    Args:
        names: keys of its ``state_dict()``.
    """
    names = list(names)
    encoder = [n for n in names if n.startswith('vision_encoder.')]
    groups = _trunk_groups(n[len(_TRUNK):] for n in encoder if n.startswith(_TRUNK))
    groups += [_neck_group(n[len(_NECK):]) for n in encoder if n.startswith(_NECK)]
    for group in sam2_groups([n for n in names if n not in set(encoder)]):
        # The two-way transformer's small network; the heads' layers keep SAM2's names.
        released = tuple(re.sub(r'\.mlp\.layers\.([01])\.', lambda m: f'.mlp.lin{int(m[1]) + 1}.', key)
                         for key in group.released)
        groups.append(KeyGroup(released, group.ours, group.load, group.dump))
    return groups


def _neck_shapes(prefix: str, dims: Mapping, levels: Iterable[int]) -> dict[str, tuple[int, ...]]:
    """Released key -> shape of one neck's levels (4, 2, 1 and 0.5 times the grid of patches)."""
    width, c = dims['embed_dim'], dims['hidden_dim']
    ups = {0: (('dconv_2x2_0', width, width // 2), ('dconv_2x2_1', width // 2, width // 4)),
           1: (('dconv_2x2', width, width // 2),)}
    shapes: dict[str, tuple[int, ...]] = {}
    for level in levels:
        inner = width
        for name, before, inner in ups.get(level, ()):
            shapes[f'{prefix}{level}.{name}.weight'] = (before, inner, 2, 2)
            shapes[f'{prefix}{level}.{name}.bias'] = (inner,)
        shapes[f'{prefix}{level}.conv_1x1.weight'] = (c, inner, 1, 1)
        shapes[f'{prefix}{level}.conv_3x3.weight'] = (c, c, 3, 3)
        shapes[f'{prefix}{level}.conv_1x1.bias'] = shapes[f'{prefix}{level}.conv_3x3.bias'] = (c,)
    return shapes


def sam3_carried_shapes(dims: Mapping) -> dict[str, tuple[int, ...]]:
    """Released key -> shape of what an image's mask never reads: video memory, the detector's neck, and the level of
    the tracker's own neck that it leaves out. They are carried through an export unchanged.
    """
    c, m = dims['hidden_dim'], dims['mem_dim']
    shapes = {PREFIX + substitute(key[len(PREFIX):], _MEMORY_NAMES): shape
              for key, shape in video_memory_shapes(dims).items()}
    shapes.update({PREFIX + 'no_obj_embed_spatial': (1, m), PREFIX + 'obj_ptr_tpos_proj.weight': (m, c),
                   PREFIX + 'obj_ptr_tpos_proj.bias': (m,)})
    shapes.update(_neck_shapes(_RELEASED + 'convs.', dims, range(4)))
    shapes.update(_neck_shapes(_RELEASED + 'sam2_convs.', dims, (3,)))
    return shapes
