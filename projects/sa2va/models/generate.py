"""Free generation: greedy text, and the [SEG] states that came up on the way."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Collection

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from .sa2va import Sa2VAModel


@dataclass
class Generation:
    """Attributes:
        token_ids: ``[T]`` int64, what was generated, end token included.
        seg_states: ``[n_seg, D]``, the language-model state at each generated [SEG] (see ``embed_states``).
    """

    token_ids: torch.Tensor
    seg_states: torch.Tensor


@torch.no_grad()
def generate(model: Sa2VAModel, batch: dict, vocabulary_head: torch.Tensor, *, seg_token_id: int,
             end_token_ids: Collection[int], max_new_tokens: int = 512) -> Generation:
    """Greedy decoding with a key/value cache.

    The state of a [SEG] token is the one of the step that consumes it, as in the teacher-forced pass; a [SEG] that
    ``max_new_tokens`` cuts off before it is consumed gives no state.

    Args:
        batch: one sample whose ``input_ids`` end where the answer begins.
        vocabulary_head: ``[vocabulary, D]``, on the model's device (``model.source.vocabulary_head()``).

    Raises:
        ValueError: more than one sample.
    """
    if batch['input_ids'].shape[0] != 1:
        raise ValueError('generation takes one sample at a time: padded rows would be generated from their padding')
    cache = DynamicCache(config=model.mllm.language_model.config)
    hidden = model.mllm(batch, cache=cache)
    tokens: list[int] = []
    states: list[torch.Tensor] = []
    for _ in range(max_new_tokens):
        state = model.mllm.vocabulary_state(hidden[:, -1])
        token = int(F.linear(state, vocabulary_head.to(state.dtype)).argmax(dim=-1))
        tokens.append(token)
        if token in end_token_ids or len(tokens) == max_new_tokens:
            break
        hidden = model.mllm.step(torch.tensor([[token]], device=hidden.device), cache, batch)
        if token == seg_token_id:
            states.append(hidden[0, -1])
    return Generation(torch.tensor(tokens), torch.stack(states) if states else hidden.new_zeros(0, hidden.shape[-1]))
