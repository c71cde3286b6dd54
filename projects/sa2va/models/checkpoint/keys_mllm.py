"""Language model, vision tower and projector: our names against released names, per family."""
from __future__ import annotations

import re
from typing import Iterable, Mapping, Sequence

import torch

from sa2va_dpo.models.mllm.internvl import decoder_kind
from sa2va_dpo.models.mllm.llava import text_fields, vision_fields

from .keys import KeyGroup, Tensors, rename, split_rows, substitute

_INTERN_VIT = (('embeddings.cls_token', 'embeddings.class_embedding'),
               ('embeddings.position_embeddings', 'embeddings.position_embedding'),
               ('embeddings.patch_embeddings.projection', 'embeddings.patch_embedding'),
               ('encoder.layer.', 'encoder.layers.'),
               ('attention.projection_layer', 'attn.proj'), ('attention.', 'attn.'),
               ('layernorm_before', 'norm1'), ('layernorm_after', 'norm2'),
               ('lambda_1', 'ls1'), ('lambda_2', 'ls2'))
_QKV = re.compile(r'(.*\.attention\.)([qkv])_proj\.(weight|bias)$')


def intern_vit_groups(names: Iterable[str]) -> list[KeyGroup]:
    """``InternVLVisionModel`` keys (under ``mllm.vision_model.``) against InternViT's fused ``qkv``."""
    ours, groups = 'mllm.vision_model.', []
    for name in names:
        qkv = _QKV.match(name)
        if qkv is None:
            groups.append(rename('vision_model.' + substitute(name, _INTERN_VIT), ours + name))
        elif qkv.group(2) == 'q':
            stem, _, leaf = qkv.groups()
            groups.append(split_rows(f'vision_model.{substitute(stem, _INTERN_VIT)}qkv.{leaf}',
                                     [f'{ours}{stem}{x}_proj.{leaf}' for x in 'qkv']))
    return groups


def _below(names: Iterable[str], prefix: str) -> list[str]:
    return [n[len(prefix):] for n in names if n.startswith(prefix)]


_INTERNLM2 = (('embed_tokens', 'tok_embeddings'), ('self_attn.o_proj', 'attention.wo'),
              ('mlp.gate_proj', 'feed_forward.w1'), ('mlp.up_proj', 'feed_forward.w3'),
              ('mlp.down_proj', 'feed_forward.w2'),
              ('input_layernorm', 'attention_norm'), ('post_attention_layernorm', 'ffn_norm'))
_LLAMA_QKV = re.compile(r'(layers\.\d+\.)self_attn\.([qkv])_proj\.weight$')


def interleaved_qkv(released: str, ours: list[str], num_heads: int, num_kv_heads: int) -> KeyGroup:
    """InternLM2's ``wqkv`` against separate projections.

    Rows of ``wqkv`` come in one block per key/value head: the queries of that head's group, then its key, then its
    value, ``head_dim`` rows each.
    """
    per_group = num_heads // num_kv_heads

    def load(tensors: Tensors) -> list[torch.Tensor]:
        blocks = tensors[0].unflatten(0, (num_kv_heads, per_group + 2, -1))
        q, k, v = blocks[:, :per_group], blocks[:, per_group:per_group + 1], blocks[:, per_group + 1:]
        return [part.flatten(0, 2).clone() for part in (q, k, v)]

    def dump(tensors: Tensors) -> list[torch.Tensor]:
        blocks = [t.unflatten(0, (num_kv_heads, n, -1)) for t, n in zip(tensors, (per_group, 1, 1))]
        return [torch.cat(blocks, dim=1).flatten(0, 2)]

    return KeyGroup((released,), tuple(ours), load, dump)


def _internlm2_groups(config: Mapping, names: list[str]) -> list[KeyGroup]:
    llm, groups = config['llm_config'], []
    released, ours = 'language_model.model.', 'mllm.language_model.'
    for name in names:
        qkv = _LLAMA_QKV.match(name)
        if qkv is None:
            groups.append(rename(released + substitute(name, _INTERNLM2), ours + name))
        elif qkv.group(2) == 'q':
            groups.append(interleaved_qkv(f'{released}{qkv.group(1)}attention.wqkv.weight',
                                          [f'{ours}{qkv.group(1)}self_attn.{x}_proj.weight' for x in 'qkv'],
                                          llm['num_attention_heads'], llm['num_key_value_heads']))
    return groups


def _internvl_groups(config: Mapping, names: list[str]) -> list[KeyGroup]:
    groups = intern_vit_groups(_below(names, 'mllm.vision_model.'))
    groups += [rename('mlp1.' + n, 'mllm.mlp1.' + n) for n in _below(names, 'mllm.mlp1.')]
    decoder = _below(names, 'mllm.language_model.')
    if decoder_kind(config) == 'internlm2':
        return groups + _internlm2_groups(config, decoder)
    return groups + [rename('language_model.model.' + n, 'mllm.language_model.' + n) for n in decoder]


_QWEN_VL = (('mllm.vision_model.', 'model.model.visual.'), ('mllm.language_model.', 'model.model.language_model.'),
            ('mllm.final_norm.', 'model.model.language_model.norm.'))
_LLAVA = (('mllm.vision_model.', 'model.model.vision_tower.vision_model.'),
          ('mllm.language_model.', 'model.model.language_model.'),
          ('mllm.mlp1.0.', 'model.model.multi_modal_projector.linear_1.'),
          ('mllm.mlp1.2.', 'model.model.multi_modal_projector.linear_2.'))


def _renamed(names: list[str], parts: Sequence[tuple[str, str]]) -> list[KeyGroup]:
    return [rename(released + n, ours + n) for ours, released in parts for n in _below(names, ours)]


def unread_mllm_shapes(config: Mapping, family: str) -> dict[str, tuple[int, ...]]:
    """Released key -> shape of the tensors of a vision tower behind the layer that is read (LLaVA: the last layer and
    the norm of the class token). They are carried through an export unchanged."""
    if family != 'llava':
        return {}
    vision = vision_fields(config)
    d, inner = vision['hidden_size'], vision['intermediate_size']
    tower = 'model.model.vision_tower.vision_model.'
    layer = f'{tower}encoder.layers.{vision["num_hidden_layers"] - 1}.'
    weights = {f'{layer}self_attn.{x}.weight': (d, d) for x in ('q_proj', 'k_proj', 'v_proj', 'out_proj')}
    weights.update({f'{layer}mlp.fc1.weight': (inner, d), f'{layer}mlp.fc2.weight': (d, inner)})
    weights.update({f'{name}.weight': (d,) for name in (f'{layer}layer_norm1', f'{layer}layer_norm2',
                                                        f'{tower}post_layernorm')})
    return weights | {key[:-len('weight')] + 'bias': shape[:1] for key, shape in weights.items()}


def mllm_groups(config: Mapping, family: str, names: Iterable[str]) -> list[KeyGroup]:
    """One group per tensor of ``Sa2VAModel.mllm``.

    Args:
        names: keys of ``Sa2VAModel.state_dict()``.
    """
    names = list(names)
    if family == 'internvl':
        return _internvl_groups(config, names)
    return _renamed(names, _LLAVA if family == 'llava' else _QWEN_VL)


def vocabulary_head(config: Mapping, family: str) -> tuple[str, tuple[int, int], str, bool]:
    """The vocabulary head: released key, shape ``[vocabulary, D]``, key of the embedding, and whether the two are tied.

    A tied head may be absent from the files.
    """
    if family == 'internvl':
        text, stem = config['llm_config'], 'language_model.'
        names = ('output', 'tok_embeddings') if decoder_kind(config) == 'internlm2' else ('lm_head', 'embed_tokens')
        head, embedding = f'{stem}{names[0]}.weight', f'{stem}model.{names[1]}.weight'
    else:
        text = text_fields(config) if family == 'llava' else config.get('text_config', config)
        head, embedding = 'model.lm_head.weight', 'model.model.language_model.embed_tokens.weight'
    tied = bool(text.get('tie_word_embeddings', config.get('tie_word_embeddings', False)))
    return head, (text['vocab_size'], text['hidden_size']), embedding, tied
