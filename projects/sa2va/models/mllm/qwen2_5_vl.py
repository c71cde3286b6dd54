"""Qwen2.5-VL (Bai et al., arXiv 2502.13923): the [SEG] state is taken after the final norm."""
from __future__ import annotations

from typing import Mapping

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLTextModel,
)

from .base import cache_arguments, causal_attention_mask, decoder_config, merge_image_tokens
from .qwen_vl import QwenVL, text_fields


class Qwen25VL(QwenVL):
    def __init__(self, config: Mapping, where: str = 'config.json') -> None:
        super().__init__(
            Qwen2_5_VisionTransformerPretrainedModel(decoder_config(Qwen2_5_VLVisionConfig, config['vision_config'])),
            Qwen2_5_VLTextModel(decoder_config(Qwen2_5_VLTextConfig, text_fields(config, where))))

    def image_tokens(self, batch: dict) -> torch.Tensor:
        weight = self.vision_model.patch_embed.proj.weight
        out = self.vision_model(batch['pixel_values'].to(weight.dtype), grid_thw=batch['image_grid_thw'])
        # transformers 4.57 returns the merged tokens, 5.x an object that has them beside the patches' own states.
        return out if isinstance(out, torch.Tensor) else out.pooler_output

    def forward(self, batch: dict, cache=None) -> torch.Tensor:
        embeddings = merge_image_tokens(self.language_model.embed_tokens(batch['input_ids']),
                                        batch['image_token_mask'], self.vision_tokens(batch))
        return self.language_model(
            inputs_embeds=embeddings, attention_mask=causal_attention_mask(batch, cache),
            position_ids=self.with_text_row(self.positions(batch)), **cache_arguments(cache)).last_hidden_state

    def step(self, token_ids: torch.Tensor, cache, batch: dict) -> torch.Tensor:
        positions = self.with_text_row(self.step_positions(token_ids, cache, batch), cache.get_seq_length())
        return self.language_model(input_ids=token_ids, position_ids=positions,
                                   **cache_arguments(cache)).last_hidden_state
