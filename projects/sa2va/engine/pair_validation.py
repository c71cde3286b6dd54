"""Preference metrics on the validation pairs, beside the masks' metrics, of the policy and of its reference."""
from __future__ import annotations

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from sa2va_dpo.datasets.annotations import VAL_PAIRS_FILE
from sa2va_dpo.datasets.dpo_vessel_dataset import DPOVesselDataset, dpo_collate
from sa2va_dpo.models.losses import combined_loss
from sa2va_dpo.models.sa2va import upsample_logits
from sa2va_dpo.models.sa2va_dpo_model import Sa2VADPOModel
from sa2va_dpo.models.trainable import in_eval_mode

from .console_hook import SAID
from .run_folder import read_history

# Name here -> name in combined_loss.
PAIR_METRICS = dict(dpo_loss='dpo_loss', accuracy='accuracy', margin='margin', chosen_rewards='chosen_rewards',
                    rejected_rewards='rejected_rewards', saturation='saturation', disagreement='disagreement_pixels',
                    drift_outside='drift_outside')
REFERENCE_METRICS = ('dice', 'iou', 'cldice', 'betti0_error', 'betti1_error')


def bare_model(model) -> torch.nn.Module:
    """The model inside DDP's or DeepSpeed's wrappers."""
    while not isinstance(model, Sa2VADPOModel) and hasattr(model, 'module'):
        model = model.module
    return model


@HOOKS.register_module()
class PairValidationHook(Hook):
    """Adds to every validation's metrics, and so to the log, TensorBoard and ``val_history.json``:

    * ``pairs/dpo_loss`` (as weighted in training), ``pairs/accuracy``, ``pairs/margin``, ``pairs/chosen_rewards``,
      ``pairs/rejected_rewards``, ``pairs/drift_outside`` (mean ``|z - z_ref|`` where the masks agree) and
      ``pairs/disagreement`` (|D| as a share of the scoring square), means over all validation pairs;
      ``pairs/saturation`` (share of pixels with ``|z| > 10``), mean over the validation images;
    * ``reference/dice`` and the others of ``REFERENCE_METRICS``: the frozen reference, that is the validated start.

    One forward pass of the policy an image scores all its pairs. The reference's logits are kept until it is reset
    (float32, at the decoder's resolution, in host memory). Processes share the images.

    Args:
        ann_file: validation pairs below the training set's data root; where there are none, one log line says so.
    """

    # Before mmengine's RuntimeInfoHook, which hands the metrics to the loggers.
    priority = 'HIGHEST'

    def __init__(self, ann_file: str = VAL_PAIRS_FILE) -> None:
        self.ann_file = ann_file
        self.dataset: DPOVesselDataset | None = None
        self.start: dict[str, float] | None = None
        self._reference: dict[int, torch.Tensor] = {}
        self._version: int | None = None

    def before_train(self, runner) -> None:
        model, train = bare_model(runner.model), runner.train_loop.dataloader.dataset
        if runner.iter > 0 and (history := read_history(runner.work_dir)):
            self.start = history[0]
        if not isinstance(model, Sa2VADPOModel) or not hasattr(train, 'validation_pairs'):
            return
        self.dataset = train.validation_pairs(self.ann_file)
        if self.dataset is None:
            runner.logger.info(
                f'{train.data_root / self.ann_file}: no validation pairs, so pairs/* is not reported and the alarm '
                'watches the training pairs (the generator writes them with --val_fraction above 0)', extra=SAID
            )

    def after_val_epoch(self, runner, metrics=None) -> None:
        if metrics is None:
            return
        model = bare_model(runner.model)
        # Not so where the run was given trained tensors (load_from): its start is not the reference.
        at_start = runner.iter == 0 and isinstance(model, Sa2VADPOModel) and model.policy_is_reference()
        if self.dataset is not None:
            metrics.update({f'pairs/{name}': value for name, value in self.measure(model, at_start).items()})
        if isinstance(model, Sa2VADPOModel) and model.preference.use_reference:
            if at_start:
                self.start = dict(metrics)
            for name in REFERENCE_METRICS:
                if self.start is not None and name in self.start:
                    metrics[f'reference/{name}'] = self.start[name]

    def measure(self, model: Sa2VADPOModel, at_start: bool) -> dict[str, float]:
        """The pair metrics of the policy as it is now; the same on every process.

        Args:
            at_start: policy and reference are one, so one forward pass serves both.
        """
        if self._version != model.reference_version:
            self._version = model.reference_version
            self._reference.clear()
        device = next(model.parameters()).device
        names = [name for name in PAIR_METRICS if name != 'drift_outside' or model.preference.use_reference]
        sums = torch.zeros(len(names) + 2, dtype=torch.float64)
        with in_eval_mode(model):
            for index in range(get_rank(), len(self.dataset), get_world_size()):
                data = model.data_preprocessor(dpo_collate([self.dataset[index]], model.checkpoint), False)
                low_res = model.policy(data['batch']).low_res.float()
                reference = None
                if model.preference.use_reference:
                    if index not in self._reference:
                        first = low_res if at_start else model.reference_low_res(data['batch'])
                        self._reference[index] = first.cpu()
                    reference = upsample_logits(self._reference[index].to(device), model.score_size)
                chosen, rejected = (data[side].float() / 255 for side in ('chosen', 'rejected'))
                result = combined_loss(
                    model.preference,
                    upsample_logits(low_res, model.score_size),
                    reference,
                    chosen,
                    rejected,
                    gaps=data['gaps'],
                    image_index=data['image_index'],
                )
                values = torch.stack([result[PAIR_METRICS[name]].double().cpu() for name in names])
                count = torch.full_like(values, len(chosen))
                count[names.index('saturation')] = 1
                sums[:-2] += values * count
                sums[-2:] += torch.tensor([len(chosen), 1.0])
        sums = sums.to(device if device.type == 'cuda' else 'cpu')
        all_reduce(sums)
        totals = dict(zip(names, sums[:-2].tolist()))
        pairs, images = sums[-2:].tolist()
        means = {name: total / (images if name == 'saturation' else pairs) for name, total in totals.items()}
        means['disagreement'] /= model.score_size ** 2
        return means
