"""What a run's frozen parts make of a batch: the same for policy and reference, so it is computed once a step."""
from __future__ import annotations

from typing import Collection

import torch

from .sa2va import Sa2VAModel

_VISION = frozenset({'vision', 'vision_projector'})
_SAM2 = frozenset({'sam2_encoder', 'sam2_neck'})
# Key under which a batch brings a result -> the trainable parts (``trainable.PARTS``) that it depends on. Where two
# would do, the stronger one comes first.
DEPENDS: dict[str, frozenset[str]] = {
    'seg_states': _VISION | {'llm'},
    'vision_tokens': _VISION,
    # conv_s0 and conv_s1 belong to the decoder: past them, only for a decoder that is frozen.
    'sam2_features': _SAM2 | {'mask_decoder'},
    'sam2_levels': _SAM2,
}


@torch.no_grad()
def with_frozen_results(policy: Sa2VAModel, batch: dict, moving: Collection[str]) -> dict:
    """The batch with what no trained part can change: a forward pass of it runs what is left.

    Args:
        policy: its vision tower, language model and SAM2 encoder run here at most once.
        batch: what ``Sa2VAPreprocessor.collate`` gives; results that it brings are taken as they are.
        moving: the parts that are trained.

    Returns:
        A new dict, with ``seg_states`` (else ``vision_tokens``) and ``sam2_levels`` where these are frozen.
    """
    batch, moving = dict(batch), set(moving)
    if policy.mllm is not None and 'seg_states' not in batch:
        if not DEPENDS['seg_states'] & moving:
            batch['seg_states'] = policy.seg_states(batch)
        elif 'vision_tokens' not in batch and not DEPENDS['vision_tokens'] & moving:
            batch['vision_tokens'] = policy.vision_tokens(batch)
    if not {'sam2_features', 'sam2_levels'} & set(batch) and not DEPENDS['sam2_levels'] & moving:
        batch['sam2_levels'] = policy.sam2_levels(batch['sam_pixel_values'])
    return batch
