"""What every family offers to ``Sa2VAModel``."""
from __future__ import annotations

import inspect
from typing import Mapping

import torch
from torch import nn
from transformers import LlamaModel, PretrainedConfig

# transformers 4.57 calls the key/value cache of a decoder ``past_key_values``, 5.x ``cache``.
_CACHE = 'cache' if 'cache' in inspect.signature(LlamaModel.forward).parameters else 'past_key_values'


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


def cache_arguments(cache) -> dict:
    """How a decoder is told about its key/value cache (None: none, and none is made), on every transformers."""
    return {_CACHE: cache, 'use_cache': cache is not None}


def _rope_of(fields: Mapping) -> dict:
    """Everything a configuration says about rotary positions, as one dict with ``rope_theta`` and ``rope_type``.

    4.57 writes ``rope_theta`` and ``rope_scaling``, 5.x one ``rope_parameters``.
    """
    rope = dict(fields.get('rope_scaling') or {}, **(fields.get('rope_parameters') or {}))
    if 'rope_theta' in fields:
        rope.setdefault('rope_theta', fields['rope_theta'])
    kind = rope.pop('type', None)
    rope.setdefault('rope_type', kind or 'default')
    if rope['rope_type'] == 'mrope':
        # The name of multimodal sections before they became a field of the plain kind.
        rope['rope_type'] = 'default'
    return rope


def decoder_config(kind: type[PretrainedConfig], fields: Mapping) -> PretrainedConfig:
    """A transformers configuration from the fields that its constructor names; foreign fields are left out.

    What decides how code runs rather than what it computes (dtype, attention kernel) never comes from a checkpoint.
    Rotary fields are given in the form that the installed transformers reads: one that it does not know would be
    dropped without a word, and with it the checkpoint's own frequencies.
    """
    parameters = inspect.signature(kind.__init__).parameters
    known = set(parameters) - {'self', 'kwargs', 'use_cache', 'rope_theta', 'rope_scaling', 'rope_parameters'}
    chosen = {k: v for k, v in fields.items() if k in known}
    rope = _rope_of(fields)
    if 'rope_parameters' in parameters:
        if len(rope) > 1:  # more than the kind alone
            chosen['rope_parameters'] = rope
    elif 'rope_theta' in parameters:
        if 'rope_theta' in rope:
            chosen['rope_theta'] = rope.pop('rope_theta')
        if rope['rope_type'] != 'default' or len(rope) > 1:
            chosen['rope_scaling'] = rope
    if 'use_cache' in parameters:
        chosen['use_cache'] = False
    return kind(**chosen, attn_implementation='sdpa')
