"""What every family offers to ``Sa2VAModel``."""
from __future__ import annotations

from typing import Mapping

import torch
from torch import nn


class MultimodalLLM(nn.Module):
    """Image tokens and text in, hidden states out; no vocabulary logits.

    Attributes:
        vision_model: the image tower.
        language_model: the decoder without its vocabulary head; has ``embed_tokens``.
        hidden_size: width D of the hidden states.
    """

    vision_model: nn.Module
    language_model: nn.Module
    hidden_size: int

    def image_tokens(self, batch: dict) -> torch.Tensor:
        """Projected vision tokens ``[n_image_tokens, D]`` of all images of the batch, in order."""
        raise NotImplementedError

    def vision_tokens(self, batch: dict) -> torch.Tensor:
        """Everything the decoder takes from the vision tower, one row an image token: ``[n_image_tokens, W]``.

        W is D, and more where the tower also feeds inner layers of the decoder (Qwen3-VL). The rows that a batch brings
        as ``vision_tokens`` are taken as they are.
        """
        return batch['vision_tokens'] if 'vision_tokens' in batch else self.image_tokens(batch)

    def forward(self, batch: dict, cache=None) -> torch.Tensor:
        """Hidden states ``[B, L, D]``: at a [SEG] token, what ``text_hidden_fcs`` was trained on.

        Args:
            batch: ``input_ids [B, L]`` right padded, ``attention_mask [B, L]``, ``image_token_mask [B, L]`` (bool: the
                places that image tokens take), ``pixel_values`` and whatever else the family's preprocessing gives.
            cache: a ``transformers.Cache`` to fill, for generation; None in training.
        """
        raise NotImplementedError

    def step(self, token_ids: torch.Tensor, cache, batch: dict) -> torch.Tensor:
        """Hidden states ``[B, T, D]`` of ``token_ids [B, T]`` that follow what ``cache`` holds.

        Args:
            batch: the batch that filled the cache.
        """
        raise NotImplementedError

    def vocabulary_state(self, hidden: torch.Tensor) -> torch.Tensor:
        """The state the vocabulary head reads, from the state that ``forward`` returns."""
        return hidden


def merge_image_tokens(embeddings: torch.Tensor, is_image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Text embeddings with image tokens in their places.

    Args:
        embeddings: ``[B, L, D]``.
        is_image: bool ``[B, L]``, with as many True as there are ``tokens``.
        tokens: ``[n, D]``.
    """
    mask = is_image.unsqueeze(-1).expand_as(embeddings)
    return embeddings.masked_scatter(mask, tokens.to(embeddings.dtype))


def causal_attention_mask(batch: dict, cache=None) -> torch.Tensor | None:
    """What to give a decoder as ``attention_mask`` so that plain causal attention, and with it the fast kernels, run.

    Rows are padded on the right, where causal attention never looks from a real token: without a cache, padding needs
    no mask. It is all ones then and not None, which transformers (4.57) takes for several sequences packed into one row
    and answers with an explicit mask of L x L. With a cache, what follows padding would look at it.
    """
    if cache is None:
        return torch.ones_like(batch['input_ids'])
    mask = batch.get('attention_mask')
    return None if mask is None or mask.shape[0] == 1 else mask


def with_rope_fields(fields: Mapping) -> dict:
    """Decoder fields with ``rope_theta`` and ``rope_scaling``, also when a newer transformers wrote the two as one
    ``rope_parameters``."""
    fields = dict(fields)
    rope = fields.pop('rope_parameters', None)
    if rope and 'rope_theta' not in fields:
        rope = dict(rope)
        fields['rope_theta'] = rope.pop('rope_theta', 10000.0)
        if rope.get('rope_type', 'default') != 'default' or 'mrope_section' in rope:
            fields['rope_scaling'] = rope
    return fields
