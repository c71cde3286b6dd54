"""LLaVA-1.5 (Liu et al., arXiv 2310.03744): CLIP's ViT-L at 336 px, two linear layers, Vicuna.

The image tokens are the patches' states behind all layers of CLIP (Radford et al., arXiv 2103.00020) but the last,
without the class token. The [SEG] state is taken after the decoder's final norm.
"""
from __future__ import annotations

from typing import Mapping

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

from sa2va_dpo.common.errors import InputError

from .base import MultimodalLLM, cache_arguments, causal_attention_mask, decoder_config, merge_image_tokens

# What LlavaConfig means where a nested configuration leaves a field out, as transformers writes it.
_VISION_DEFAULTS = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                        image_size=336, patch_size=14, hidden_act='quick_gelu', layer_norm_eps=1e-5)
_TEXT_DEFAULTS = dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
                      hidden_act='silu', rms_norm_eps=1e-6, rope_theta=10000.0, max_position_embeddings=2048)


def text_fields(config: Mapping) -> dict:
    """``text_config`` with nothing left out.

    ``vocab_size`` at the top, which upstream writes when it adds its tokens, goes before that of ``text_config``.
    """
    fields = {**_TEXT_DEFAULTS, **config['text_config']}
    if 'rope_parameters' in fields:
        fields.pop('rope_theta')
    fields.setdefault('num_key_value_heads', fields['num_attention_heads'])
    fields['vocab_size'] = config.get('vocab_size') or fields.get('vocab_size')
    return fields


def vision_fields(config: Mapping) -> dict:
    """``vision_config`` with nothing left out."""
    return {**_VISION_DEFAULTS, **config['vision_config']}


def tokens_per_image(config: Mapping) -> int:
    """576 for CLIP ViT-L at 336 px."""
    vision = vision_fields(config)
    return (vision['image_size'] // vision['patch_size']) ** 2


class Llava(MultimodalLLM):
    """``vision_model`` (CLIP up to the layer that is read), ``mlp1`` (projector), ``language_model`` (Vicuna without
    its head).

    Raises:
        InputError: a way to read the vision tower that Sa2VA was not released with.
    """

    def __init__(self, config: Mapping, where: str = 'config.json') -> None:
        super().__init__()
        for name, released in (('vision_feature_layer', -2), ('vision_feature_select_strategy', 'default'),
                               ('projector_hidden_act', 'gelu')):
            if config.get(name, released) != released:
                raise InputError(f'{where}: {name} is {config[name]!r}, only {released!r} was released')
        vision = vision_fields(config)
        clip = CLIPVisionModel(CLIPVisionConfig(
            **dict({name: vision[name] for name in _VISION_DEFAULTS}, num_hidden_layers=vision['num_hidden_layers'] -
            1), attn_implementation='sdpa'))
        # transformers 5 has no module between the model and its parts.
        self.vision_model = getattr(clip, 'vision_model', clip)
        # It reads the class token, which is dropped.
        self.vision_model.post_layernorm = nn.Identity()
        self.language_model = LlamaModel(decoder_config(LlamaConfig, _arithmetic(text_fields(config))))
        self.hidden_size = self.language_model.config.hidden_size
        self.mlp1 = nn.Sequential(nn.Linear(vision['hidden_size'], self.hidden_size), nn.GELU(),
                                  nn.Linear(self.hidden_size, self.hidden_size))

    def patch_states(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """States behind the last layer but one ``[images, 1 + patches, D_clip]``, class token first."""
        weight = self.vision_model.embeddings.patch_embedding.weight
        return self.vision_model(pixel_values=pixel_values.to(weight.dtype)).last_hidden_state

    def image_tokens(self, batch: dict) -> torch.Tensor:
        return self.mlp1(self.patch_states(batch['pixel_values'])[:, 1:]).flatten(0, 1)

    def forward(self, batch: dict, cache=None) -> torch.Tensor:
        embeddings = merge_image_tokens(self.language_model.embed_tokens(batch['input_ids']),
                                        batch['image_token_mask'], self.vision_tokens(batch))
        return self.language_model(
            inputs_embeds=embeddings, attention_mask=causal_attention_mask(batch, cache),
            **cache_arguments(cache)).last_hidden_state

    def step(self, token_ids: torch.Tensor, cache, batch: dict) -> torch.Tensor:
        return self.language_model(input_ids=token_ids, **cache_arguments(cache)).last_hidden_state


def _arithmetic(fields: Mapping) -> dict:
    """Without the token ids: ``pad_token_id`` would take the gradient from one row of the vocabulary."""
    return {name: value for name, value in fields.items() if not name.endswith('_token_id')}
