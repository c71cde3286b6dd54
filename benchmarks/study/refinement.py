"""A small learnt refinement of the logits on SAM2's stride-4 features: what it would be worth, tried in the study only.

The map of logits has a quarter of SAM2's input side; the stride-4 features under it were computed from 4 x 4 pixels and
may still know where in them a vessel runs.
"""
from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, STRIDE = 32, 4


class Refinement(nn.Module):
    """Logits ``[n, s, s]`` and features ``[n, C, s, s]`` -> logits ``[n, 4 s, 4 s]``; bilinear before it is trained."""

    def __init__(self, channels: int, width: int = WIDTH) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels + 1, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
            nn.Conv2d(width, STRIDE ** 2, 3, padding=1), nn.PixelShuffle(STRIDE))
        last = self.body[-2]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, logits: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        logits = logits.unsqueeze(1)
        # Logits of a trained decoder reach 20: what the layers are given is bounded.
        change = self.body(torch.cat([torch.tanh(logits / 4), features.to(logits.dtype)], 1))
        return (F.interpolate(logits, scale_factor=STRIDE, mode='bilinear', align_corners=False) + change).squeeze(1)


def attach(policy) -> None:
    """Let a ``Sa2VAModel`` give refined logits from its decoder, in place."""
    policy.refinement = Refinement(policy.sam2.mask_decoder.conv_s0.out_channels).to(
        next(policy.parameters()).device)
    decode = policy.decode

    def refined(features, seg_embedding, seg_sample_index=None):
        output = decode(features, seg_embedding, seg_sample_index)
        own = features if seg_sample_index is None else features[seg_sample_index]
        return dataclasses.replace(output, low_res=policy.refinement(output.low_res, own.high_res[0].float()))

    policy.decode = refined
