"""Hooks of a preference run: the start is validated too, checkpoints resume exactly, the best is by validation."""
from __future__ import annotations

import json
import math
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS

from sa2va_dpo.datasets.annotations import write_json
from sa2va_dpo.models.checkpoint import check_names

HISTORY_FILE = 'val_history.json'
ALARM_FILE = 'alarms.json'


@HOOKS.register_module()
class ExactCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook with two repairs.

    * After saving a new best, mmengine writes ``iter_k`` a second time, but the runner then adds one to a counter
      that has already been advanced, so a resume would skip a batch (seen in mmengine 0.10.7). The counter is set
      to what the hook means for the duration of the call.
    * The validation of the untouched start (iteration 0) is not a result of training and never the best checkpoint.
    """

    def _save_checkpoint_with_step(self, runner, step, meta):
        loop, true_iter = runner.train_loop, runner.iter
        if not self.by_epoch:
            loop._iter = step - 1
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            loop._iter = true_iter

    def after_val_epoch(self, runner, metrics) -> None:
        if runner.iter > 0:
            super().after_val_epoch(runner, metrics)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """mmengine loads with strict=False and would drop tensors with a warning; here that is an error."""
        model = getattr(runner.model, 'module', runner.model)
        check_names(model, {name.removeprefix('module.'): tensor for name, tensor in checkpoint['state_dict'].items()},
                    runner._load_from or 'the resumed checkpoint')


@HOOKS.register_module()
class StartValidationHook(Hook):
    """Validate before the first step and keep every validation in ``val_history.json`` of the work directory.

    The history is a list of ``{"iter": int, metric: float, ...}``; its first entry is the start.
    """

    # After CheckpointHook and LoggerHook have set themselves up.
    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        self.path = Path(runner.work_dir) / HISTORY_FILE
        self.history = []
        if runner.iter > 0 and self.path.is_file():
            entries = json.loads(self.path.read_text(encoding='utf-8'))
            self.history = [entry for entry in entries if entry['iter'] <= runner.iter]
        if runner.val_loop is not None and runner.iter == 0:
            runner.logger.info('Validation of the start, before the first step')
            runner.val_loop.run()

    def after_val_epoch(self, runner, metrics=None) -> None:
        # The loop's own timings ride along in the metrics; they are no property of the model.
        values = {key: float(value) for key, value in (metrics or {}).items() if key not in ('time', 'data_time')}
        # JSON has no infinity, which the boundary distance of an empty mask may be.
        entry = dict(iter=runner.iter, **{key: value if math.isfinite(value) else None for key, value in values.items()})
        self.history = [old for old in self.history if old['iter'] != runner.iter] + [entry]
        if is_main_process():
            write_json(self.path, self.history)


@HOOKS.register_module()
class PreferenceAlarmHook(Hook):
    """Says so, loudly, when the policy learns the preferences and loses the masks.

    Preference accuracy rises in runs that destroy the masks, so it must not be read without held-out Dice. At every
    validation the accuracy on the validation pairs (``PairValidationHook``; where there are none, the mean training accuracy
    since the last validation) is looked at beside Dice: accuracy of at least one half, or not below the first one, and
    Dice more than ``min_drop`` below that of the start raise the alarm, in the log, in TensorBoard (``val/alarm``) and in ``alarms.json``.

    Args:
        min_drop: fall of validation Dice below the start that counts; smaller falls are noise.
        stop: end the training at the first alarm.
    """

    priority = 'LOWEST'

    def __init__(self, min_drop: float = 0.02, stop: bool = False) -> None:
        self.min_drop, self.stop = min_drop, stop
        self.accuracies: list[float] = []
        self.first_accuracy: float | None = None
        self.start_dice: float | None = None
        self.alarms: list[dict] = []

    def before_train(self, runner) -> None:
        path = Path(runner.work_dir) / HISTORY_FILE
        if runner.iter > 0 and path.is_file():
            # A resumed run is still compared with the start, not with where it was interrupted.
            history = json.loads(path.read_text(encoding='utf-8'))
            self.start_dice = history[0].get('dice')
            if len(history) > 1 and history[1]['iter'] <= runner.iter:
                self.first_accuracy = history[1].get('pairs/accuracy')
            alarms = path.with_name(ALARM_FILE)
            if alarms.is_file():
                self.alarms = [a for a in json.loads(alarms.read_text(encoding='utf-8')) if a['iter'] <= runner.iter]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if outputs and 'accuracy' in outputs:
            self.accuracies.append(float(outputs['accuracy']))

    def after_val_epoch(self, runner, metrics=None) -> None:
        dice = (metrics or {}).get('dice')
        if dice is None:
            return
        if self.start_dice is None:
            self.start_dice = dice
            return
        accuracy = metrics.get('pairs/accuracy')
        where = 'validation' if accuracy is not None else 'training'
        if accuracy is None and self.accuracies:
            accuracy = sum(self.accuracies) / len(self.accuracies)
        self.accuracies.clear()
        if accuracy is None:
            return
        if self.first_accuracy is None:
            self.first_accuracy = accuracy
        # Below chance and falling, the preferences are lost as well: the metrics say that themselves.
        alarm = accuracy >= min(self.first_accuracy, 0.5) and dice < self.start_dice - self.min_drop
        if is_main_process():
            runner.visualizer.add_scalar('val/alarm', int(alarm), runner.iter)
        if alarm:
            self.alarms.append(dict(iter=runner.iter, accuracy=accuracy, first_accuracy=self.first_accuracy, pairs=where,
                                    dice=dice, start_dice=self.start_dice))
            if is_main_process():
                write_json(Path(runner.work_dir) / ALARM_FILE, self.alarms)
            runner.logger.error(
                f'ALARM at iteration {runner.iter}: accuracy on the {where} pairs is {accuracy:.2f} ({self.first_accuracy:.2f} at '
                f'first) while validation Dice fell from {self.start_dice:.4f} to {dice:.4f}. The policy learns the preferences and '
                f'loses the masks: raise preference supervised_weight, lower the learning rate, or stop '
                f'(see docs/method.md)' + ('; stopping now' if self.stop else ''))
            if self.stop:
                runner.train_loop.stop_training = True
