"""InternVL 2.5 and 3: InternViT, pixel-shuffle projector, decoder language model.

InternVL 2.5: Chen et al., arXiv 2412.05271. InternVL3: Zhu et al., arXiv 2504.10479.
"""
from __future__ import annotations

from typing import Mapping

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from sa2va_dpo.common.errors import InputError

from .base import MultimodalLLM, cache_arguments, causal_attention_mask, decoder_config, merge_image_tokens

# Fields of a released llm_config that decide the arithmetic. Everything else in there (attention kernels,
# dtypes, token ids, remote-code maps) belongs to the code that wrote it.
_DECODER_FIELDS = ('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
                   'num_key_value_heads', 'hidden_act', 'max_position_embeddings', 'rms_norm_eps', 'rope_theta',
                   'rope_scaling', 'rope_parameters', 'attention_dropout', 'use_sliding_window', 'sliding_window',
                   'max_window_layers', 'initializer_range', 'tie_word_embeddings')


def vision_config(config: Mapping, where: str = 'config.json') -> InternVLVisionConfig:
    """The released ``vision_config`` as transformers' ``InternVLVisionConfig``."""
    c = config['vision_config']
    if config.get('select_layer', -1) != -1:
        raise InputError(f'{where}: select_layer is {config["select_layer"]}, only -1 (the last layer) was released')
    if config.get('ps_version', 'v2') != 'v2':
        raise InputError(f'{where}: ps_version is {config["ps_version"]!r}, only "v2" was released')
    return InternVLVisionConfig(
        hidden_size=c['hidden_size'], num_hidden_layers=c['num_hidden_layers'],
        num_attention_heads=c['num_attention_heads'], intermediate_size=c['intermediate_size'],
        attention_bias=c.get('qkv_bias', True), use_qk_norm=c.get('qk_normalization', False),
        hidden_act=c.get('hidden_act', 'gelu'), norm_type=c.get('norm_type', 'layer_norm'),
        layer_norm_eps=c.get('layer_norm_eps', 1e-6), image_size=c['image_size'], patch_size=c['patch_size'],
        num_channels=c.get('num_channels', 3), layer_scale_init_value=c.get('initializer_factor', 0.1),
        use_mean_pooling=True, attn_implementation='sdpa')


def decoder_kind(config: Mapping, where: str = 'config.json') -> str:
    """``'qwen2'`` or ``'internlm2'``.

    Raises:
        InputError: a language model that Sa2VA was not released with.
    """
    c = config['llm_config']
    name = (c.get('architectures') or [''])[0] or c.get('model_type', '')
    kind = {'Qwen2ForCausalLM': 'qwen2', 'qwen2': 'qwen2',
            'InternLM2ForCausalLM': 'internlm2', 'internlm2': 'internlm2'}.get(name)
    if kind is None:
        raise InputError(f'{where}: llm_config.architectures is {name!r}; Sa2VA was released with '
                         f'Qwen2ForCausalLM and InternLM2ForCausalLM')
    return kind


def _build_decoder(config: Mapping, where: str) -> nn.Module:
    c = config['llm_config']
    fields = {k: c[k] for k in _DECODER_FIELDS if k in c}
    if decoder_kind(config, where) == 'qwen2':
        return Qwen2Model(decoder_config(Qwen2Config, fields))
    if c.get('bias', False):
        raise InputError(f'{where}: llm_config.bias is true; InternLM2 was released without biases')
    # InternLM2 (arXiv 2403.17297) is LLaMA with other names and a fused, group-interleaved wqkv.
    return LlamaModel(decoder_config(LlamaConfig, fields))


def pixel_shuffle(x: torch.Tensor, factor: int = 2) -> torch.Tensor:
    """Fold ``factor x factor`` neighbouring patches into channels (InternVL's ``ps_version`` v2).

    Args:
        x: ``[N, R, C, D]`` patch grid.

    Returns:
        ``[N, (R/f)(C/f), f f D]``, row by row; channels ordered (row in block, column in block, D).
    """
    n, rows, cols, d = x.shape
    x = x.reshape(n, rows // factor, factor, cols // factor, factor, d).transpose(2, 3)
    return x.reshape(n, (rows // factor) * (cols // factor), factor * factor * d)


class InternVL(MultimodalLLM):
    """``vision_model`` (InternViT), ``mlp1`` (projector), ``language_model`` (decoder without its head)."""

    def __init__(self, config: Mapping, where: str = 'config.json') -> None:
        super().__init__()
        vision = vision_config(config, where)
        self.vision_model = InternVLVisionModel(vision)
        for module in self.vision_model.modules():
            # transformers fixes the eps of query and key norms; InternViT-6B takes it from the configuration.
            if hasattr(module, 'variance_epsilon'):
                module.variance_epsilon = vision.layer_norm_eps
        self.language_model = _build_decoder(config, where)
        self.hidden_size = self.language_model.config.hidden_size
        self.factor = round(1 / config.get('downsample_ratio', 0.5))
        folded = vision.hidden_size * self.factor ** 2
        self.mlp1 = nn.Sequential(nn.LayerNorm(folded), nn.Linear(folded, self.hidden_size), nn.GELU(),
                                  nn.Linear(self.hidden_size, self.hidden_size))

    def patch_states(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Last ViT state ``[tiles, 1 + patches, D_vit]``, class token first."""
        weight = self.vision_model.embeddings.patch_embeddings.projection.weight
        return self.vision_model(pixel_values.to(weight.dtype)).last_hidden_state

    def project(self, patch_states: torch.Tensor) -> torch.Tensor:
        """``[tiles, 1 + patches, D_vit]`` -> ``[tiles, patches / f^2, D]``."""
        patches = patch_states[:, 1:]
        side = int(patches.shape[1] ** 0.5)
        return self.mlp1(pixel_shuffle(patches.unflatten(1, (side, side)), self.factor))

    def image_tokens(self, batch: dict) -> torch.Tensor:
        return self.project(self.patch_states(batch['pixel_values'])).flatten(0, 1)

    def forward(self, batch: dict, cache=None) -> torch.Tensor:
        ids = batch['input_ids']
        embeddings = merge_image_tokens(self.language_model.embed_tokens(ids), batch['image_token_mask'],
                                        self.vision_tokens(batch))
        return self.language_model(
            inputs_embeds=embeddings, attention_mask=causal_attention_mask(batch, cache),
            **cache_arguments(cache)).last_hidden_state

    def step(self, token_ids: torch.Tensor, cache, batch: dict) -> torch.Tensor:
        return self.language_model(input_ids=token_ids, **cache_arguments(cache)).last_hidden_state
