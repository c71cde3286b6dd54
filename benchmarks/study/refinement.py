"""Shapes of a refinement that were tried: ``refined x 10`` is the product's (``models/refinement.py``)."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from sa2va_dpo.models.refinement import STRIDE, Refinement


@dataclass(frozen=True)
class Shape:
    """Of a refinement.

    Attributes:
        width: channels of its convolutions.
        pixels: it also sees the 4 x 4 pixels of SAM2's input under each logit.
        dilations: of further convolutions, which look so many logits further.
        levels: 2: it also sees the stride-8 features.
        lr_mult: multiplies the run's learning rate for it.
    """

    width: int = 32
    pixels: bool = False
    dilations: tuple[int, ...] = ()
    levels: int = 1
    lr_mult: float = 1.0


SHAPES = {'refined': Shape(), 'refined x 3': Shape(64, dilations=(2,), lr_mult=3.0),
          'refined on pixels': Shape(64, True, (2,), lr_mult=3.0),
          'refined x 10': Shape(64, dilations=(2,), lr_mult=10.0),
          'refined deep x 3': Shape(64, dilations=(2, 4, 8), lr_mult=3.0),
          'refined deep x 10': Shape(64, dilations=(2, 4, 8), lr_mult=10.0),
          'refined deep, two levels, x 10': Shape(64, dilations=(2, 4, 8), levels=2, lr_mult=10.0)}


def attach(policy, shape: Shape) -> list[nn.Parameter]:
    """Let a ``Sa2VAModel`` give refined logits from its decoder, in place; returns what is new."""
    decoder = policy.sam2.mask_decoder
    channels = decoder.conv_s0.out_channels + (decoder.conv_s1.out_channels if shape.levels == 2 else 0)
    channels += 3 * STRIDE ** 2 if shape.pixels else 0
    policy.refinement = None  # the policy's own decoder is to give what this one refines
    refinement = Refinement(channels, shape.width, shape.dilations).to(next(policy.parameters()).device)
    policy.add_module('tried', refinement)
    decode, image_features = policy.decode, policy.image_features

    def with_pixels(batch):
        features = image_features(batch)
        if shape.pixels:
            # Behind the features proper: an index into the batch takes its pixels along.
            features.high_res.append(F.pixel_unshuffle(batch['sam_pixel_values'].float(), STRIDE))
        return features

    def refined(features, seg_embedding, seg_sample_index=None):
        own = features if seg_sample_index is None else features[seg_sample_index]
        plain = dataclasses.replace(own, high_res=own.high_res[:2])
        output = decode(plain, seg_embedding)
        levels = [own.high_res[0].float(), *own.high_res[2:]]
        if shape.levels == 2:
            levels.append(F.interpolate(own.high_res[1].float(), scale_factor=2.0, mode='bilinear',
                                        align_corners=False))
        return dataclasses.replace(output, low_res=refinement(output.low_res, torch.cat(levels, 1)))

    policy.decode, policy.image_features = refined, with_pixels
    return list(refinement.parameters())
