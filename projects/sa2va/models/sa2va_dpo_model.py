"""Sa2VA trained on preferences between masks of one image (DPO, arXiv 2305.18290)."""
from __future__ import annotations

from typing import Mapping

import torch
from mmengine.registry import MODELS

from sa2va_dpo.models.losses import PreferenceConfig, combined_loss

from .compiled import compile_layers
from .frozen import with_frozen_results
from .reference import REFERENCES, build_reference, digests, same_digests
from .run_model import Sa2VARunModel, checked_score_size
from .sa2va import MaskOutput, upsample_logits


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
class Sa2VADPOModel(Sa2VARunModel):
    """Policy, reference and preference loss.

    One forward pass of the policy (and one of the reference) scores every pair of an image, because a mask's
    likelihood under the policy is a per-pixel Bernoulli on one map of logits.

    Args:
        checkpoint, trainable and the settings of :class:`Sa2VARunModel`: see there.
        preference: fields of :class:`PreferenceConfig`; ``dict(type='guide')`` is the guide's objective as written.
        reference: ``'initial'`` (the policy before training: adapters off and snapshots of fully trained parts),
            ``'copy'`` (a full frozen copy), ``'stored'`` (logits computed before training, which every batch brings;
            the run's ``cache`` setting chooses this by itself) or ``'none'`` (the guide's simplified form).
        score_size: side S of the square on which masks are scored, in pixels; logits are upsampled to it and the
            data set's soft masks must have it. ``None``: the SAM2 input size (1024 for released checkpoints).

    Raises:
        ValueError: an unsupported combination, said before any data is read.
    """

    def __init__(self, checkpoint: str, trainable: Mapping | str, preference: Mapping, *, reference: str = 'initial',
                 score_size: int | None = None, **settings) -> None:
        # Before the checkpoint is read: a mistyped setting should not cost the minutes that a large one takes.
        type(self).check(dict(settings, checkpoint=checkpoint, trainable=trainable, preference=preference,
                              reference=reference, score_size=score_size))
        super().__init__(checkpoint, trainable, **settings)
        self.score_size = score_size or self.policy.sam_size
        self.preference = preference_config(preference, reference)
        self.reference_kind = reference if self.preference.use_reference else 'none'
        self.reference = build_reference(self.reference_kind, self.policy)
        if self.reference_kind == 'copy' and self.compilation is not None:
            # Policy and reference round alike only where they run alike; a copy of a module is not compiled.
            compile_layers(self.reference.copy, self.compilation, say=lambda _: None)
        # Where the reference's logits are on the disk there is no reference in memory to compare with.
        self._start = digests(self.policy) if self.reference_kind == 'stored' else None

    @classmethod
    def check(cls, settings: Mapping) -> None:
        super().check(settings)
        checked_score_size(settings.get('score_size'))
        if settings.get('trainable') is None:
            raise ValueError('trainable: None means inference; name the parts to train, or use type="Sa2VARunModel"')
        if settings.get('preference') is None:
            raise ValueError('preference: must be given, dict(type="guide") for the guide\'s objective as written')
        reference = settings.get('reference', 'initial')
        if reference not in REFERENCES:
            raise ValueError(f'reference: {reference!r} is not one of {", ".join(REFERENCES)}')
        preference_config(settings['preference'], reference)

    def score_logits(self, output: MaskOutput) -> torch.Tensor:
        """Logits on the scoring square, [n, S, S] float32 (bilinear, from the stride-4 map)."""
        return upsample_logits(output.low_res.float(), self.score_size)

    def policy_is_reference(self) -> bool:
        """Whether policy and reference are one at this moment, so that the policy's logits are the reference's.

        So they are before the first step of a run, but not where the run was given trained tensors (``load_from``) or
        goes on from a checkpoint. Every trained tensor is compared; False without a reference.
        """
        if self._start is not None:
            return same_digests(self.policy, self._start)
        return self.reference is not None and self.reference.equals(self.policy)

    @property
    def reference_version(self) -> int:
        """Changes whenever the reference does, for callers that keep its logits."""
        return 0 if self.reference is None else self.reference.version

    def reset_reference(self) -> None:
        """Make the policy as it is now the reference, for training in rounds.

        Raises:
            ValueError: there is no reference in memory (``'none'``, ``'stored'``).
        """
        if self.reference is None:
            raise ValueError(f'reference: {self.reference_kind!r} cannot be reset: set reference="initial"')
        self.reference.reset(self.policy)

    def reference_low_res(self, batch: dict) -> torch.Tensor:
        """Logits of the reference as its decoder gives them, ``[B, h, w]`` float32: from the batch or else computed.

        Raises:
            ValueError: ``reference='stored'`` and the batch brings none.
        """
        if 'reference_low_res' in batch:
            stored = batch['reference_low_res'].float()
            # Kept of a checkpoint without the refinement that this run trains: as coarse as its map is.
            coarse = self.policy.refinement is not None and stored.shape[-1] < self.policy.sam_size
            return upsample_logits(stored, self.policy.sam_size) if coarse else stored
        if self.reference is None:
            raise ValueError('reference "stored": the batch brings no reference_low_res; the data set needs a cache of '
                             'it')
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
        if self.preference.use_reference and 'reference_low_res' not in batch:
            batch = with_frozen_results(self.policy, batch, self.switches)
        logits = self.score_logits(self.policy(batch))
        reference_logits = None
        if self.preference.use_reference:
            reference_logits = upsample_logits(self.reference_low_res(batch), self.score_size)
        return combined_loss(self.preference, logits, reference_logits, chosen.float() / 255, rejected.float() / 255,
                             gaps=gaps, image_index=image_index)
