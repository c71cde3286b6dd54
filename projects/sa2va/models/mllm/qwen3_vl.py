"""Qwen3-VL: the [SEG] state is the last layer's output BEFORE the final norm.

That is what ``hidden_states[-1]`` of transformers' conditional-generation class holds for this family, in training and
in generation, so it is what Sa2VA's projector was trained on. The other choice shifts mask logits by more than 1.
"""
from __future__ import annotations

from typing import Mapping

import torch
from torch import nn
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, Qwen3VLVisionModel

from .base import cache_arguments, causal_attention_mask, decoder_config, merge_image_tokens
from .qwen_vl import QwenVL, text_fields


class Qwen3VL(QwenVL):
    """``final_norm`` is the decoder's own; it stands outside ``language_model`` because masks do not pass through
    it."""

    def __init__(self, config: Mapping, where: str = 'config.json') -> None:
        super().__init__(Qwen3VLVisionModel(decoder_config(Qwen3VLVisionConfig, config['vision_config'])),
                         Qwen3VLTextModel(decoder_config(Qwen3VLTextConfig, text_fields(config, where))))
        self.final_norm = self.language_model.norm
        self.language_model.norm = nn.Identity()

    def vision_states(self, batch: dict) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Image tokens ``[n, D]`` and what the first decoder layers add at their places (DeepStack, arXiv 2406.04334),
        one ``[n, D]`` per layer."""
        weight = self.vision_model.patch_embed.proj.weight
        out = self.vision_model(batch['pixel_values'].to(weight.dtype), grid_thw=batch['image_grid_thw'])
        # transformers 4.57 returns the two, 5.x an object that has them beside the patches' own states.
        return out if isinstance(out, tuple) else (out.pooler_output, out.deepstack_features)

    def image_tokens(self, batch: dict) -> torch.Tensor:
        return self.vision_states(batch)[0]

    def vision_tokens(self, batch: dict) -> torch.Tensor:
        if 'vision_tokens' in batch:
            return batch['vision_tokens']
        tokens, deep = self.vision_states(batch)
        return torch.cat([tokens, *deep], dim=1)

    def forward(self, batch: dict, cache=None) -> torch.Tensor:
        tokens, *deep = self.vision_tokens(batch).split(self.hidden_size, dim=1)
        embeddings = merge_image_tokens(self.language_model.embed_tokens(batch['input_ids']),
                                        batch['image_token_mask'], tokens)
        return self.language_model(
            inputs_embeds=embeddings, attention_mask=causal_attention_mask(batch, cache),
            position_ids=self.with_text_row(self.positions(batch)), visual_pos_masks=batch['image_token_mask'],
            deepstack_visual_embeds=deep, **cache_arguments(cache)).last_hidden_state

    def step(self, token_ids: torch.Tensor, cache, batch: dict) -> torch.Tensor:
        positions = self.with_text_row(self.step_positions(token_ids, cache, batch), cache.get_seq_length())
        return self.language_model(input_ids=token_ids, position_ids=positions,
                                   **cache_arguments(cache)).last_hidden_state

    def vocabulary_state(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.final_norm(hidden)
