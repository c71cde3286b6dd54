"""SAM 3's tracker in the place of SAM2 (``Sa2VA-Qwen3-VL-4B-SAM3``): sizes, and the ``transformers`` configuration.

SAM 3: Carion et al., "SAM 3: Segment Anything with Concepts", arXiv 2511.16719. Its tracker is SAM2 with another image
encoder: a plain ViT with rotary positions, most of whose layers see windows only, and three levels made from its last
map by convolutions. Prompt encoder, mask decoder and the vector that stands for "no memory" are SAM2's.

The classes exist from transformers 5 on.
"""
from __future__ import annotations

from typing import Mapping

import torch
import transformers
from torch import nn

from sa2va_dpo.common.errors import InputError

from .sam2 import mask_decoder_fields, prompt_encoder_fields

try:
    from transformers import Sam3TrackerConfig, Sam3TrackerModel, Sam3ViTConfig
    from transformers.models.sam3.configuration_sam3 import Sam3VisionConfig
    from transformers.models.sam3_tracker.configuration_sam3_tracker import (
        Sam3TrackerMaskDecoderConfig,
        Sam3TrackerPromptEncoderConfig,
    )
except ImportError:
    Sam3TrackerModel = None

# build_sam3_tracker of the Sa2VA repository (sizes of facebook/sam3), image 1008 x 1008.
SAM3_1008: dict = {
    'kind': 'sam3', 'image_size': 1008, 'patch_size': 14, 'pretrain_image_size': 336, 'embed_dim': 1024, 'depth': 32,
    'num_heads': 16, 'mlp_dim': 4736, 'window_size': 24, 'global_att_blocks': [7, 15, 23, 31], 'hidden_dim': 256,
    'mem_dim': 64, 'decoder_num_heads': 8, 'decoder_mlp_dim': 2048, 'iou_head_hidden_dim': 256,
    'memory_attention_layers': 4, 'memory_attention_ffn': 2048, 'mask_decoder_attention_downsample_rate': 2,
    'mask_decoder_depth': 2, 'num_multimask_outputs': 3, 'iou_head_depth': 3, 'prompt_mask_in_chans': 16,
    'num_maskmem': 7,
}
# The detector's neck makes a fourth level, which the tracker leaves out.
LEVELS = (4.0, 2.0, 1.0)


def check_sam3_dims(dims: Mapping, where: str) -> None:
    """Raises InputError where the patches do not divide the image."""
    for name in ('image_size', 'pretrain_image_size'):
        if not isinstance(dims[name], int) or dims[name] <= 0 or dims[name] % dims['patch_size']:
            raise InputError(f'{where}: {name} is {dims[name]!r}, must be a positive multiple of the patch size, '
                             f'{dims["patch_size"]}')


def require_sam3(what: str = 'this configuration') -> None:
    """Raises InputError, about the checkpoint ``what``, where the installed transformers has no SAM 3."""
    if Sam3TrackerModel is None:
        raise InputError(f'{what}: looks at images with SAM 3, which transformers {transformers.__version__} does not '
                         f'have: make the second environment (SA2VA_DPO_STACK=next bash tools/setup_env.sh, '
                         f'transformers 5; docs/environment.md) and run this in it')


def build_sam3(dims: Mapping) -> nn.Module:
    """``Sam3TrackerModel`` of complete sizes (see :func:`..grounding.complete_dims`); attention through SDPA.

    ``vision_encoder.backbone.embeddings.class_position`` is the row of the released position table that belongs to the
    class token of SAM 3's pre-training. No computation reads it; an export writes it back.

    Raises:
        InputError: the installed transformers has no SAM 3.
    """
    require_sam3()
    size, patch, c = dims['image_size'], dims['patch_size'], dims['hidden_dim']
    grid = size // patch
    backbone = Sam3ViTConfig(
        hidden_size=dims['embed_dim'], intermediate_size=dims['mlp_dim'], num_hidden_layers=dims['depth'],
        num_attention_heads=dims['num_heads'], image_size=size, patch_size=patch, window_size=dims['window_size'],
        global_attn_indexes=list(dims['global_att_blocks']), pretrain_image_size=dims['pretrain_image_size'],
        # Not the library's default: upstream's ViT keeps torch's own epsilon.
        layer_norm_eps=1e-5)
    vision = Sam3VisionConfig(
        backbone_config=backbone, fpn_hidden_size=c, scale_factors=list(LEVELS),
        backbone_feature_sizes=[[int(grid * s), int(grid * s)] for s in LEVELS])
    config = Sam3TrackerConfig(
        vision_config=vision,
        prompt_encoder_config=Sam3TrackerPromptEncoderConfig(**prompt_encoder_fields(dims, patch)),
        mask_decoder_config=Sam3TrackerMaskDecoderConfig(**mask_decoder_fields(dims)))
    config._attn_implementation = 'sdpa'
    model = Sam3TrackerModel(config)
    model.vision_encoder.backbone.embeddings.class_position = nn.Parameter(torch.zeros(1, 1, dims['embed_dim']))
    return model
