"""Sa2VA trained on preferences between masks of one image (DPO, arXiv 2305.18290)."""
from __future__ import annotations

from typing import Mapping

import torch
from mmengine.registry import MODELS

from sa2va_dpo.models.losses import PreferenceConfig, combined_loss
from .reference import build_reference
from .sa2va import upsample_logits
from .sa2va_seg_model import Sa2VASegModel


def preference_config(preference: Mapping, reference: str) -> PreferenceConfig:
    """The objective that a model's ``preference`` and ``reference`` settings mean together.

    Raises:
        ValueError: an unsupported combination.
    """
    config = PreferenceConfig.from_dict(
        dict(preference, use_reference=preference.get('use_reference', reference != 'none')))
    if config.use_reference and reference == 'none':
        raise ValueError('preference asks for a reference but reference is "none": set reference="initial", '
                         'or use_reference=False')
    return config


@MODELS.register_module()
class Sa2VADPOModel(Sa2VASegModel):
    """Policy, reference and preference loss.

    One forward pass of the policy (and one of the reference) scores every pair of an image, because a mask's
    likelihood under the policy is a per-pixel Bernoulli on one map of logits.

    Args:
        checkpoint, trainable, score_size and the other settings: as in :class:`Sa2VASegModel`.
        preference: fields of :class:`PreferenceConfig`; ``dict(type='guide')`` is the guide's objective as written.
        reference: ``'initial'`` (the policy before training: adapters off and snapshots of fully trained parts),
            ``'copy'`` (a full frozen copy), ``'stored'`` (logits computed before training, which every batch brings; the
            run's ``cache`` setting chooses this by itself) or ``'none'`` (the guide's simplified form).

    Raises:
        ValueError: an unsupported combination, said before any data is read.
    """

    def __init__(self, checkpoint: str, trainable: Mapping | str, preference: Mapping,
                 reference: str = 'initial', **settings) -> None:
        # Before the checkpoint is read: a mistyped setting should not cost the minutes that a large one takes.
        objective = preference_config(preference, reference)
        super().__init__(checkpoint, trainable, **settings)
        self.preference = objective
        self.reference = build_reference(reference if self.preference.use_reference else 'none', self.policy)

    def reference_low_res(self, batch: dict) -> torch.Tensor:
        """Low-resolution logits of the reference, ``[B, h, w]`` float32: those that the batch brings, else computed.

        Raises:
            ValueError: ``reference='stored'`` and the batch brings none.
        """
        if 'reference_low_res' in batch:
            return batch['reference_low_res'].float()
        if self.reference is None:
            raise ValueError('reference "stored": the batch brings no reference_low_res; the data set needs a cache of it')
        return self.reference(self.policy, batch).low_res.float()

    def loss(self, batch: dict, chosen: torch.Tensor, rejected: torch.Tensor, image_index: torch.Tensor,
             gaps: torch.Tensor, **_) -> dict[str, torch.Tensor]:
        """Losses and logs of a batch of images with their pairs.

        Args:
            batch: the policy's input for B images. Where it brings ``reference_low_res`` ([B, h, w], the reference's
                low-resolution logits), the reference is not run.
            chosen, rejected: soft masks of P pairs, [P, S, S] uint8 where 255 is certain vessel.
            image_index: [P] int64, the image each pair belongs to.
            gaps: [P] float32, ``iou_gap`` of each pair.
        """
        logits = self.score_logits(self.policy(batch))
        reference_logits = None
        if self.preference.use_reference:
            reference_logits = upsample_logits(self.reference_low_res(batch), self.score_size)
        return combined_loss(self.preference, logits, reference_logits, chosen.float() / 255, rejected.float() / 255,
                             gaps=gaps, image_index=image_index)
