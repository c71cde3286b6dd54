"""SAM2 sizes, and the ``transformers`` configuration that they mean.

Released Sa2VA configurations carry no SAM2 sizes (they are fixed in code to Hiera-Large at 1024 px); a checkpoint
with other sizes states them in ``sam2_dims.json``.
"""
from __future__ import annotations

from typing import Mapping

import torch
from torch import nn
from transformers import Sam2Config, Sam2Model
from transformers.models.sam2.configuration_sam2 import (
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

from sa2va_dpo.common.errors import InputError

# SAM 2.1 Hiera-Large (sam2_hiera_l.yaml of the SAM 2 release), image 1024 x 1024.
HIERA_LARGE_1024: dict = {
    'image_size': 1024, 'embed_dim': 144, 'num_heads': 2, 'stages': [2, 6, 36, 4],
    'global_att_blocks': [23, 33, 43], 'window_spec': [8, 4, 16, 8],
    'window_pos_embed_bkg_spatial_size': [7, 7], 'hidden_dim': 256, 'mem_dim': 64,
    'decoder_num_heads': 8, 'decoder_mlp_dim': 2048, 'iou_head_hidden_dim': 256,
    'memory_attention_layers': 4, 'memory_attention_ffn': 2048, 'mask_decoder_attention_downsample_rate': 2,
    'head_mul': 2.0, 'dim_mul': 2.0, 'q_pool_stages': 3, 'fpn_top_down_levels': [2, 3], 'backbone_stride': 16,
    'mlp_ratio': 4.0, 'mask_decoder_depth': 2, 'num_multimask_outputs': 3, 'iou_head_depth': 3,
    'prompt_mask_in_chans': 16, 'num_maskmem': 7,
}


def check_sam2_dims(dims: Mapping, where: str) -> None:
    """Raises InputError where the strides do not divide the image."""
    if not isinstance(dims['image_size'], int) or dims['image_size'] <= 0 or dims['image_size'] % 32:
        raise InputError(f'{where}: image_size is {dims["image_size"]!r}, must be a positive multiple of 32')


def prompt_encoder_fields(dims: Mapping, patch_size: int) -> dict:
    """Arguments of the library's prompt encoder configuration, which SAM2 and SAM 3's tracker share.

    Args:
        patch_size: pixels of the image to one cell of the embedding.
    """
    return dict(hidden_size=dims['hidden_dim'], image_size=dims['image_size'], patch_size=patch_size,
                mask_input_channels=dims['prompt_mask_in_chans'])


def mask_decoder_fields(dims: Mapping) -> dict:
    """The same of the mask decoder's."""
    return dict(
        hidden_size=dims['hidden_dim'], mlp_dim=dims['decoder_mlp_dim'], num_hidden_layers=dims['mask_decoder_depth'],
        num_attention_heads=dims['decoder_num_heads'],
        attention_downsample_rate=dims['mask_decoder_attention_downsample_rate'],
        num_multimask_outputs=dims['num_multimask_outputs'], iou_head_depth=dims['iou_head_depth'],
        iou_head_hidden_dim=dims['iou_head_hidden_dim'])


class NoPositions(nn.Module):
    """Stands where the library's neck computes the sine positions of every level of every image.

    Only SAM2's video memory reads them, which is no part of Sa2VA on images; they are as large as the levels, and took
    a tenth of the encoder's time on a CPU.
    """

    def forward(self, shape: torch.Size, device: torch.device, dtype: torch.dtype, mask=None) -> torch.Tensor:
        """Nothing, ``[0]``."""
        return torch.empty(0, device=device, dtype=dtype)


def build_sam2(dims: Mapping) -> nn.Module:
    """``Sam2Model`` of complete sizes; its ``fpn_position_encoding`` are empty."""
    model = Sam2Model(sam2_config(dims))
    model.vision_encoder.neck.position_encoding = NoPositions()
    return model


def sam2_config(dims: Mapping) -> Sam2Config:
    """Complete sizes (see :func:`..grounding.complete_dims`) as a ``Sam2Config``; attention through SDPA."""
    stages = range(len(dims['stages']))
    widths = [int(dims['embed_dim'] * dims['dim_mul'] ** i) for i in stages]
    size, c = dims['image_size'], dims['hidden_dim']
    backbone = Sam2HieraDetConfig(
        hidden_size=dims['embed_dim'], num_attention_heads=dims['num_heads'], image_size=[size, size],
        blocks_per_stage=list(dims['stages']), embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[int(dims['num_heads'] * dims['head_mul'] ** i) for i in stages],
        window_size_per_stage=list(dims['window_spec']), global_attention_blocks=list(dims['global_att_blocks']),
        window_positional_embedding_background_size=list(dims['window_pos_embed_bkg_spatial_size']),
        num_query_pool_stages=dims['q_pool_stages'], mlp_ratio=dims['mlp_ratio'])
    vision = Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[size // s, size // s] for s in (4, 8, 16)],
        fpn_hidden_size=c, fpn_top_down_levels=list(dims['fpn_top_down_levels']))
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config=Sam2PromptEncoderConfig(**prompt_encoder_fields(dims, dims['backbone_stride'])),
        mask_decoder_config=Sam2MaskDecoderConfig(**mask_decoder_fields(dims)))
    config._attn_implementation = 'sdpa'
    return config
