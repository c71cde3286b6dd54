"""Language model, vision tower and projector: our names against released names, per family."""
from __future__ import annotations

import re
from typing import Iterable, Mapping

from .keys import KeyGroup, rename, split_rows, substitute

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


def _internvl_groups(names: list[str]) -> list[KeyGroup]:
    groups = intern_vit_groups(_below(names, 'mllm.vision_model.'))
    groups += [rename('mlp1.' + n, 'mllm.mlp1.' + n) for n in _below(names, 'mllm.mlp1.')]
    groups += [rename('language_model.model.' + n, 'mllm.language_model.' + n)
               for n in _below(names, 'mllm.language_model.')]
    return groups


def _qwen_vl_groups(names: list[str]) -> list[KeyGroup]:
    parts = (('mllm.vision_model.', 'model.model.visual.'), ('mllm.language_model.', 'model.model.language_model.'),
             ('mllm.final_norm.', 'model.model.language_model.norm.'))
    return [rename(released + n, ours + n) for ours, released in parts for n in _below(names, ours)]


def mllm_groups(config: Mapping, family: str, names: Iterable[str]) -> list[KeyGroup]:
    """One group per tensor of ``Sa2VAModel.mllm``.

    Args:
        names: keys of ``Sa2VAModel.state_dict()``.
    """
    names = list(names)
    return _internvl_groups(names) if family == 'internvl' else _qwen_vl_groups(names)


def vocabulary_head(config: Mapping, family: str) -> tuple[str, tuple[int, int], str, bool]:
    """The vocabulary head: released key, shape ``[vocabulary, D]``, key of the embedding, and whether the two are tied.

    A tied head may be absent from the files.
    """
    if family == 'internvl':
        text, stem = config['llm_config'], 'language_model.'
        head, embedding = stem + 'lm_head.weight', stem + 'model.embed_tokens.weight'
    else:
        text = config.get('text_config', config)
        head, embedding = 'model.lm_head.weight', 'model.model.language_model.embed_tokens.weight'
    tied = bool(text.get('tie_word_embeddings', config.get('tie_word_embeddings', False)))
    return head, (text['vocab_size'], text['hidden_size']), embedding, tied
