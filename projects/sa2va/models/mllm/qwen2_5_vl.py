"""Qwen2.5-VL (Bai et al., arXiv 2502.13923): the [SEG] state is taken after the final norm."""
from __future__ import annotations

from typing import Mapping

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLTextModel,
)

from .base import causal_attention_mask, merge_image_tokens
from .qwen_vl import QwenVL, sub_config, text_fields


class Qwen25VL(QwenVL):
    def __init__(self, config: Mapping, where: str = 'config.json') -> None:
        super().__init__(
            Qwen2_5_VisionTransformerPretrainedModel(sub_config(Qwen2_5_VLVisionConfig, config['vision_config'])),
            Qwen2_5_VLTextModel(sub_config(Qwen2_5_VLTextConfig, text_fields(config, where))))

    def image_tokens(self, batch: dict) -> torch.Tensor:
        weight = self.vision_model.patch_embed.proj.weight
        return self.vision_model(batch['pixel_values'].to(weight.dtype), grid_thw=batch['image_grid_thw'])

    def forward(self, batch: dict, cache=None) -> torch.Tensor:
        embeddings = merge_image_tokens(self.language_model.embed_tokens(batch['input_ids']),
                                        batch['image_token_mask'], self.vision_tokens(batch))
        return self.language_model(
            inputs_embeds=embeddings, attention_mask=causal_attention_mask(batch, cache),
            position_ids=self.with_text_row(self.positions(batch)), past_key_values=cache,
            use_cache=cache is not None).last_hidden_state

    def step(self, token_ids: torch.Tensor, cache, batch: dict) -> torch.Tensor:
        positions = self.with_text_row(self.step_positions(token_ids, cache, batch), cache.get_seq_length())
        return self.language_model(input_ids=token_ids, position_ids=positions, past_key_values=cache,
                                   use_cache=True).last_hidden_state
