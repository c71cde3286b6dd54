"""Hooks of a preference run: the start is validated too, checkpoints resume exactly, the best is by validation."""
from __future__ import annotations

from pathlib import Path

import torch
from mmengine.dist import all_reduce, broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from sa2va_dpo.common.files import write_json

from .run_folder import ALARM_FILE, read_history


@HOOKS.register_module()
class StartValidationHook(Hook):
    """Validate before the first step and keep every validation in ``val_history.json`` of the work directory.

    The history (``engine/checkpointing.py``) is a list of ``{"iter": int, metric: float, ...}``; its first entry is the
    start.
    """

    # After CheckpointHook and LoggerHook have set themselves up.
    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        if runner.val_loop is not None and runner.iter == 0:
            runner.logger.info('Validation of the start, before the first step')
            runner.val_loop.run()


@HOOKS.register_module()
class PreferenceAlarmHook(Hook):
    """Says so, loudly, when the policy learns the preferences and loses the masks.

    Preference accuracy rises in runs that destroy the masks, so it must not be read without held-out Dice. At every
    validation the accuracy on the validation pairs (``PairValidationHook``; where there are none, the mean training
    accuracy since the last validation, over all processes) is looked at beside Dice: accuracy of at least one half, or
    not below the first one, and Dice more than ``min_drop`` below that of the start raise the alarm, in the log, in
    TensorBoard (``val/alarm``) and in ``alarms.json``. All processes decide alike.

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

    def state_dict(self) -> dict:
        """What a checkpoint keeps of it."""
        return dict(accuracies=list(self.accuracies), first_accuracy=self.first_accuracy, start_dice=self.start_dice)

    def load_state_dict(self, state: dict) -> None:
        self.accuracies = list(state['accuracies'])
        self.first_accuracy, self.start_dice = state['first_accuracy'], state['start_dice']

    def before_train(self, runner) -> None:
        if runner.iter > 0 and (history := read_history(runner.work_dir)):
            # A resumed run is still compared with the start, not with where it was interrupted.
            self.start_dice = history[0].get('dice')
            if self.first_accuracy is None and len(history) > 1 and history[1]['iter'] <= runner.iter:
                self.first_accuracy = history[1].get('pairs/accuracy')
            self.alarms = [alarm for alarm in read_history(runner.work_dir, ALARM_FILE) if alarm['iter'] <= runner.iter]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if outputs and 'accuracy' in outputs:
            self.accuracies.append(float(outputs['accuracy']))

    def _training_accuracy(self) -> float | None:
        """Mean over the steps since the last validation and over all processes; None where there was no step."""
        sums = torch.tensor([sum(self.accuracies), len(self.accuracies)], dtype=torch.float64)
        all_reduce(sums)
        total, count = sums.tolist()
        return total / count if count else None

    def after_val_epoch(self, runner, metrics=None) -> None:
        dice = (metrics or {}).get('dice')
        if dice is None:
            return
        if self.start_dice is None:
            self.start_dice = dice
            return
        accuracy = metrics.get('pairs/accuracy')
        where = 'validation' if accuracy is not None else 'training'
        if accuracy is None:
            accuracy = self._training_accuracy()
        self.accuracies.clear()
        if accuracy is None:
            return
        if self.first_accuracy is None:
            self.first_accuracy = accuracy
        # Below chance and falling, the preferences are lost as well: the metrics say that themselves.
        verdict = [accuracy >= min(self.first_accuracy, 0.5) and dice < self.start_dice - self.min_drop]
        # One decision: a process that stopped alone would leave the others waiting.
        broadcast_object_list(verdict)
        alarm = verdict[0]
        if is_main_process():
            runner.visualizer.add_scalar('val/alarm', int(alarm), runner.iter)
        if alarm:
            self.alarms.append(
                dict(
                    iter=runner.iter,
                    accuracy=accuracy,
                    first_accuracy=self.first_accuracy,
                    pairs=where,
                    dice=dice,
                    start_dice=self.start_dice,
                )
            )
            if is_main_process():
                write_json(Path(runner.work_dir) / ALARM_FILE, self.alarms)
            runner.logger.error(
                f'ALARM at iteration {runner.iter}: accuracy on the {where} pairs is {accuracy:.2f} '
                f'({self.first_accuracy:.2f} at '
                f'first) while validation Dice fell from {self.start_dice:.4f} to {dice:.4f}. The policy learns the '
                'preferences and loses the masks: raise preference supervised_weight, lower the learning rate, or stop '
                f'(see docs/method.md)' + ('; stopping now' if self.stop else '')
            )
            if self.stop:
                runner.train_loop.stop_training = True
