"""Sa2VA under mmengine's runner: loading, what is trainable, prediction and supervised training."""
from __future__ import annotations

from typing import Mapping

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS

from sa2va_dpo.models.checkpoint.released import load_checkpoint
from sa2va_dpo.models.losses import supervised_term
from .sa2va import MaskOutput, Sa2VAModel, upsample_logits
from .trainable import checkpoint_activations, parameter_groups, set_trainable, store_trainable_as

_DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


@MODELS.register_module()
class Sa2VASegModel(BaseModel):
    """A Sa2VA checkpoint that predicts masks and can be trained on ground truth.

    Args:
        checkpoint: directory in the released Hugging Face layout.
        trainable: see :func:`sa2va_dpo.models.trainable.set_trainable`.
        score_size: side S of the square on which masks are scored, in pixels; logits are upsampled to it and the
            data set's soft targets must have it. ``None``: the SAM2 input size (1024 for released checkpoints).
        bce_weight, dice_weight, cldice_weight: weights of the supervised terms.
        hypotheses: ``'selected'`` trains the mask with the highest predicted IoU, as upstream does when it
            fine-tunes; ``'all'`` is for training from scratch: the best hypothesis counts fully, every hypothesis
            a little, and the IoU head learns the soft IoU of each (SAM, arXiv 2304.02643, section "training").
        iou_weight: weight of the IoU head's squared error (``hypotheses='all'`` only).
        dtype: ``'float32'`` or ``'bfloat16'``; the dtype in which the weights are loaded. DeepSpeed's bf16 casts them anyway.
        trainable_dtype: dtype in which trained tensors are kept; None: ``dtype``. ``dtype='bfloat16'`` with
            ``trainable_dtype='float32'`` halves the memory of what is frozen while the optimiser's steps stay exact; the
            policy then computes under bfloat16 autocast. For single-device strategies (DeepSpeed does this by itself).
        activation_checkpointing: parts whose layers keep only their inputs for the backward pass, such as
            ``dict(llm=True, sam2_encoder=True)``; see :func:`sa2va_dpo.models.trainable.checkpoint_activations`.
        with_mllm: False leaves the language model and its vision tower on the disk: for batches that bring their [SEG]
            states (docs/speed.md).
        policy: a ``Sa2VAModel`` to use in place of the checkpoint's, for callers that made one in memory.
    """

    def __init__(self, checkpoint: str, trainable: Mapping | str, score_size: int | None = None,
                 bce_weight: float = 2.0, dice_weight: float = 0.5, cldice_weight: float = 0.0,
                 hypotheses: str = 'selected', iou_weight: float = 1.0, dtype: str = 'float32',
                 trainable_dtype: str | None = None, activation_checkpointing: Mapping[str, bool] | None = None,
                 with_mllm: bool = True, policy: Sa2VAModel | None = None, data_preprocessor: dict | None = None) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        for name, value in (('dtype', dtype), ('trainable_dtype', trainable_dtype or dtype)):
            if value not in _DTYPES:
                raise ValueError(f'model.{name}: {value!r} is not one of {", ".join(_DTYPES)}')
        if hypotheses not in ('selected', 'all'):
            raise ValueError(f'model.hypotheses: {hypotheses!r} must be "selected" or "all"')
        self.checkpoint = checkpoint
        self.policy = policy or load_checkpoint(checkpoint, dtype=_DTYPES[dtype], with_mllm=with_mllm)
        self.switches = set_trainable(self.policy, trainable)
        if trainable_dtype is not None:
            store_trainable_as(self.policy, _DTYPES[trainable_dtype], _DTYPES[dtype])
        checkpoint_activations(self.policy, activation_checkpointing or {})
        self.score_size = score_size or self.policy.sam_size
        self.supervised = dict(bce_weight=bce_weight, dice_weight=dice_weight, cldice_weight=cldice_weight)
        self.hypotheses = hypotheses
        self.iou_weight = iou_weight

    def init_weights(self) -> None:
        """Keep the loaded weights: mmengine calls this on every model, transformers' own would draw new ones."""

    def parameter_groups(self) -> list[dict]:
        """Trainable parameters by part, see :func:`sa2va_dpo.models.trainable.parameter_groups`."""
        return parameter_groups(self.policy, self.switches)

    def trainable_names(self) -> set[str]:
        """Names of the tensors that a checkpoint of this run holds."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def state_dict(self, *args, **kwargs):
        """Trainable tensors only: what is frozen is in the start checkpoint, to which the run's config points."""
        full = super().state_dict(*args, **kwargs)
        names = {kwargs.get('prefix', '') + name for name in self.trainable_names()}
        for name in [name for name in full if name not in names]:
            del full[name]
        return full

    def score_logits(self, output: MaskOutput) -> torch.Tensor:
        """Logits on the scoring square, [n, S, S] float32 (bilinear, from the stride-4 map)."""
        return upsample_logits(output.low_res.float(), self.score_size)

    def forward(self, batch: dict, mode: str = 'tensor', **targets):
        """mmengine's one entry.

        ``mode='tensor'``: a :class:`MaskOutput`. ``mode='loss'``: the dict of losses and logs.
        ``mode='predict'``: a list of dicts with ``pred_mask`` (bool H x W, numpy) and what the batch held
        beside it: ``gt_mask``, ``image_id``, ``image``, ``field_of_view``.
        """
        if mode == 'tensor':
            return self.policy(batch)
        if mode == 'loss':
            return self.loss(batch, **targets)
        if mode == 'predict':
            return self.predict(batch, **targets)
        raise ValueError(f'mode {mode!r} must be "tensor", "loss" or "predict"')

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

    @torch.no_grad()
    def predict(self, batch: dict, gt_mask=None, image_id=None, image=None, field_of_view=None) -> list[dict]:
        """Binary masks at the images' own sizes (sigmoid > 0.5, that is logit > 0)."""
        output = self.policy(batch)
        samples = []
        for index, size in enumerate(batch['original_sizes']):
            logits = upsample_logits(output.low_res[index:index + 1].float(), self.policy.sam_size, tuple(size))
            sample = dict(pred_mask=(logits[0] > 0).cpu().numpy())
            for name, values in (('gt_mask', gt_mask), ('image_id', image_id), ('image', image),
                                 ('field_of_view', field_of_view)):
                if values is not None and values[index] is not None:
                    sample[name] = values[index]
            samples.append(sample)
        return samples
