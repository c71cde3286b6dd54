"""Sa2VA trained on ground-truth masks."""
from __future__ import annotations

from typing import Mapping

import torch
from mmengine.registry import MODELS

from sa2va_dpo.models.losses import supervised_term

from .run_model import Sa2VARunModel, checked_score_size
from .sa2va import MaskOutput, upsample_logits


@MODELS.register_module()
class Sa2VASegModel(Sa2VARunModel):
    """The run model with a supervised loss.

    Args:
        checkpoint, trainable and the settings of :class:`Sa2VARunModel`: see there.
        score_size: side S of the square on which masks are scored, in pixels; logits are upsampled to it and the
            data set's soft targets must have it. ``None``: the SAM2 input size (1024 for released checkpoints).
        bce_weight, dice_weight, cldice_weight: weights of the supervised terms.
        hypotheses: ``'selected'`` trains the mask with the highest predicted IoU, as upstream does when it
            fine-tunes; ``'all'`` is for training from scratch: the best hypothesis counts fully, every hypothesis
            a little, and the IoU head learns the soft IoU of each (SAM, arXiv 2304.02643, section "training").
        iou_weight: weight of the IoU head's squared error, with ``hypotheses='all'`` only; None: 1.0.
    """

    def __init__(self, checkpoint: str, trainable: Mapping | str, *, score_size: int | None = None,
                 bce_weight: float = 2.0, dice_weight: float = 0.5, cldice_weight: float = 0.0,
                 hypotheses: str = 'selected', iou_weight: float | None = None, **settings) -> None:
        type(self).check(dict(settings, checkpoint=checkpoint, trainable=trainable, score_size=score_size,
                              hypotheses=hypotheses, iou_weight=iou_weight))
        super().__init__(checkpoint, trainable, **settings)
        self.score_size = score_size or self.policy.sam_size
        self.supervised = dict(bce_weight=bce_weight, dice_weight=dice_weight, cldice_weight=cldice_weight)
        self.hypotheses = hypotheses
        self.iou_weight = 1.0 if iou_weight is None else iou_weight

    @classmethod
    def check(cls, settings: Mapping) -> None:
        super().check(settings)
        checked_score_size(settings.get('score_size'))
        if settings.get('trainable') is None:
            raise ValueError('trainable: None means inference; name the parts to train, or use type="Sa2VARunModel"')
        hypotheses = settings.get('hypotheses', 'selected')
        if hypotheses not in ('selected', 'all'):
            raise ValueError(f'hypotheses: {hypotheses!r} must be "selected" or "all"')
        if hypotheses == 'selected' and settings.get('iou_weight') is not None:
            raise ValueError('iou_weight: has no effect with hypotheses="selected"; leave it out')
        if hypotheses == 'all' and settings['trainable'] != 'all' and 'refinement' in settings['trainable']:
            raise ValueError('trainable.refinement: it follows the selected hypothesis; set hypotheses="selected"')

    def score_logits(self, output: MaskOutput) -> torch.Tensor:
        """Logits on the scoring square, [n, S, S] float32 (bilinear, from the decoder's map)."""
        return upsample_logits(output.low_res.float(), self.score_size)

    def loss(self, batch: dict, target: torch.Tensor, **_) -> dict[str, torch.Tensor]:
        """Supervised loss against soft targets, [n, S, S] uint8 where 255 is certain vessel."""
        output = self.policy(batch)
        target = target.float() / 255
        if self.hypotheses == 'selected':
            return dict(supervised_loss=supervised_term(self.score_logits(output), target, **self.supervised).mean())
        count = output.hypotheses.shape[1]
        logits = upsample_logits(output.hypotheses.float().flatten(0, 1), self.score_size)
        repeated = target.repeat_interleave(count, 0)
        per_mask = supervised_term(logits, repeated, **self.supervised).view(-1, count)
        with torch.no_grad():
            probability = logits.sigmoid()
            overlap = (probability * repeated).flatten(1).sum(1)
            union = (probability + repeated - probability * repeated).flatten(1).sum(1)
            iou = (overlap / union.clamp_min(1)).view(-1, count)
        iou_error = (output.iou_pred.float() - iou).square().mean()
        return dict(supervised_loss=per_mask.min(1).values.mean() + 0.3 * per_mask.mean(),
                    iou_loss=self.iou_weight * iou_error, train_iou=iou.max(1).values.mean())
