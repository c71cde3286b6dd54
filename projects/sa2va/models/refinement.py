"""A small learnt refinement of mask logits on SAM2's stride-4 features, off where a checkpoint has none.

SAM2's decoder draws a map of logits with a quarter of its input's side; the stride-4 features under it (SAM 2, arXiv
2408.00714, the skip connections of its mask decoder) were computed from 4 x 4 pixels and know where in them a thin
vessel runs. Four convolutions turn both into logits at the full input size by sub-pixel convolution (Shi et al., arXiv
1609.05158), added to the bilinear upsampling that everything else uses: until it is trained it changes nothing.
"""
from __future__ import annotations

from typing import Mapping

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, DILATION, STRIDE = 64, 2, 4


class Refinement(nn.Module):
    """Logits at stride 4 and features under them -> logits at the full input size.

    Args:
        channels: C of the features.
        width: channels of the convolutions.
        dilations: of the convolutions between the first and the last two.
    """

    def __init__(self, channels: int, width: int = WIDTH, dilations: tuple[int, ...] = (DILATION,)) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels + 1, width, 3, padding=1), nn.GELU(),
            *(layer for far in dilations
              for layer in (nn.Conv2d(width, width, 3, padding=far, dilation=far), nn.GELU())),
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
            nn.Conv2d(width, STRIDE ** 2, 3, padding=1), nn.PixelShuffle(STRIDE))
        last = self.body[-2]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, logits: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """
        Args:
            logits: ``[n, s, s]`` float32.
            features: ``[n, C, s, s]``.

        Returns:
            ``[n, 4 s, 4 s]`` float32.
        """
        coarse, dtype = logits.unsqueeze(1), self.body[0].weight.dtype
        with torch.autocast(logits.device.type, enabled=False):
            # Logits of a trained decoder reach 20: what the layers are given is bounded.
            change = self.body(torch.cat([torch.tanh(coarse / 4), features], 1).to(dtype))
        fine = F.interpolate(coarse, scale_factor=STRIDE, mode='bilinear', align_corners=False)
        return (fine + change.to(fine.dtype)).squeeze(1)


def new_refinement(policy: nn.Module) -> Refinement:
    """An untrained one for a ``Sa2VAModel``, beside its mask decoder; the same weights at every call."""
    beside = policy.sam2.mask_decoder.conv_s0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        refinement = Refinement(beside.out_channels)
    return refinement.to(beside.weight.device, beside.weight.dtype)


def shapes_wanted(channels: int) -> Mapping[str, tuple[int, ...]]:
    """Name -> shape of its tensors, for features of so many channels."""
    with torch.device('meta'):
        return {name: tuple(tensor.shape) for name, tensor in Refinement(channels).state_dict().items()}
