"""What Qwen2.5-VL and Qwen3-VL share: multimodal rotary positions and configuration reading.

M-RoPE: Wang et al., "Qwen2-VL", arXiv 2409.12191.
"""
from __future__ import annotations

from typing import Mapping

import torch
import transformers
from torch import nn

from sa2va_dpo.common.errors import InputError

from .base import MultimodalLLM

# The image processor that resizes with torchvision. In 4.57 the plain name is another one, which resizes with PIL.
QwenImageProcessor = getattr(transformers, 'Qwen2VLImageProcessor' + ('Fast' if transformers.__version__ < '5' else ''))


def text_fields(config: Mapping, where: str) -> Mapping:
    """``text_config``, or the top level of configurations written before it existed."""
    fields = config.get('text_config', config)
    if 'hidden_size' not in fields or 'vocab_size' not in fields:
        raise InputError(f'{where}: text_config states no hidden_size and vocab_size')
    return fields


def mrope_positions(image_token_mask: torch.Tensor, grid_thw: torch.Tensor, merge: int) -> torch.Tensor:
    """Rotary positions of text with one image per row.

    Text counts up by one. Image tokens stand at the position where the image begins, plus their row (height axis) and
    column (width axis) in the merged grid; text goes on behind the longer side of the grid.

    Args:
        image_token_mask: bool ``[B, L]``; the image tokens of a row are contiguous.
        grid_thw: ``[B, 3]`` patch grid (time, height, width) of each row's image.
        merge: patches per image token and axis.

    Returns:
        int64 ``[3, B, L]``: time, height, width.
    """
    grid = grid_thw.to(image_token_mask.device)
    rows, cols = (grid[:, 1] // merge).unsqueeze(1), (grid[:, 2] // merge).unsqueeze(1)
    count = image_token_mask.cumsum(dim=1)
    index = torch.arange(image_token_mask.shape[1], device=grid.device).expand_as(count)
    # Behind the image the text has used rows * cols indices but only max(rows, cols) positions.
    text = index - count + torch.where(count > 0, torch.maximum(rows, cols), 0)
    start, k = index - (count - 1), (count - 1).clamp(min=0)
    image = torch.stack([start, start + k // cols, start + k % cols])
    return torch.where(image_token_mask, image, text)


class QwenVL(MultimodalLLM):
    """A Qwen-VL vision tower and decoder; families add how the decoder is run."""

    def __init__(self, vision_model: nn.Module, language_model: nn.Module) -> None:
        super().__init__()
        self.vision_model, self.language_model = vision_model, language_model
        self.hidden_size = language_model.config.hidden_size
        self.merge = vision_model.config.spatial_merge_size

    def positions(self, batch: dict) -> torch.Tensor:
        """Rotary positions ``[3, B, L]`` of a batch."""
        return mrope_positions(batch['image_token_mask'], batch['image_grid_thw'], self.merge)

    def step_positions(self, token_ids: torch.Tensor, cache, batch: dict) -> torch.Tensor:
        """Rotary positions ``[3, B, T]`` of tokens that follow the cached ones (rows without padding)."""
        past = cache.get_seq_length()
        prompt = self.positions(batch)
        offset = prompt[0, :, -1:] + 1 - prompt.shape[2]
        position = torch.arange(past, past + token_ids.shape[1], device=token_ids.device) + offset
        return position.expand(3, -1, -1)

    @staticmethod
    def with_text_row(positions: torch.Tensor, past: int = 0) -> torch.Tensor:
        """``[4, B, L]``: plain text positions first. transformers builds the causal mask from that row; given only
        the image axes it would take their repeats for packed sequences and cut the attention."""
        text = torch.arange(past, past + positions.shape[2], device=positions.device)
        return torch.cat([text.expand(1, positions.shape[1], -1), positions])
