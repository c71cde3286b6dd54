"""What a training run says on the terminal: what runs on what, one bar, decisions and alarms; the log has the rest."""
from __future__ import annotations

import logging
import os
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS

from sa2va_dpo.common import console

from .run_folder import read_history

# ``logger.info(text, extra=SAID)``: for the terminal of a quiet command as well.
SAID = dict(said=True)
_PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep
_STOPS = 'early_stopping_hook'  # mmengine's: why a run ends is not a detail


class TerminalHandler(logging.Handler):
    """Shows a quiet command's user what is marked with ``SAID``, warnings of this package, why a run was stopped early,
    and every error."""

    def filter(self, record: logging.LogRecord) -> bool:
        ours = os.path.realpath(record.pathname).startswith(_PACKAGE)
        return (record.levelno >= logging.ERROR or getattr(record, 'said', False) or record.module == _STOPS
                or ours and record.levelno >= logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        mark = 'warning: ' if record.levelno == logging.WARNING else ''
        console.say(mark + record.getMessage(), logged=True)


def quieten(logger: MMLogger) -> None:
    """Let a run's logger write everything to its file and little to the terminal, where the command is a quiet one."""
    if not console.is_quiet():
        return
    logger.handlers = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    logger.handlers.append(TerminalHandler())
    console.log_to(logger.log_file)


@HOOKS.register_module()
class ConsoleHook(Hook):
    """The lines before the first step and the bar of a quiet run.

    Args:
        machine: on what it runs, as :func:`sa2va_dpo.engine.strategy.fit_to_machine` says it.
    """

    priority = 'VERY_HIGH'

    def __init__(self, machine: str = '') -> None:
        self.machine, self.bar, self.dice = machine, None, None
        self.measured: dict[int, float] = {}  # iteration -> validation Dice

    def before_train(self, runner) -> None:
        if runner.iter > 0:
            self.measured = {entry['iter']: entry['dice'] for entry in read_history(runner.work_dir)
                             if 'dice' in entry}
        console.say(self.head(runner))
        self.bar = console.progress(desc='training', unit='step', total=runner.max_iters, initial=runner.iter)

    def head(self, runner) -> str:
        """What runs on what."""
        cfg, loop = runner.cfg, runner.train_loop
        every = f', validated every {loop.val_interval}' if runner.val_loop is not None else ', not validated'
        batch = cfg.train_dataloader.batch_size
        steps = (f'{runner.max_iters} steps of {batch} image{"s" * (batch > 1)}{every}, learning rate '
                 f'{cfg.optim_wrapper.optimizer.lr:g}')
        lines = [f'run       {steps}', f'machine   {self.machine}', f'log       {runner.logger.log_file}']
        if console.PART not in os.environ:
            numbers = [(p.numel(), p.requires_grad) for p in runner.model.parameters()]
            trained, all_of_them = sum(n for n, moves in numbers if moves), sum(n for n, _ in numbers)
            data = loop.dataloader.dataset
            val = '' if runner.val_loop is None else f', {len(runner.val_loop.dataloader.dataset)} for validation'
            lines = [f'model     {cfg.model.checkpoint}, {trained / 1e6:.3g} of {all_of_them / 1e6:.3g} million '
                     'parameters trained',
                     f'data      {cfg.get("data_root") or type(data).__name__}, {len(data)} images{val}', *lines]
        return '\n'.join(lines)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.bar.set_postfix_str(self._figures(runner), refresh=False)
        self.bar.update()

    def _figures(self, runner) -> str:
        scalars, parts = runner.message_hub.log_scalars, []
        for name, shown in (('train/loss', 'loss'), ('train/accuracy', 'acc')):
            if name in scalars:
                parts.append(f'{shown} {scalars[name].mean(runner.log_processor.window_size):.3g}')
        if self.dice is not None:
            parts.append(f'Dice {self.dice:.4f}')
        return ', '.join(parts)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f'validating {batch_idx + 1} of {len(runner.val_dataloader)}',
                                     refresh=console.columns(console.err()) is not None)

    def after_val_epoch(self, runner, metrics=None) -> None:
        self.dice = (metrics or {}).get('dice')
        if self.dice is not None:
            self.measured[runner.iter] = self.dice
        if self.dice is not None and runner.iter == 0:
            console.say(f'validation Dice of the start: {self.dice:.4f}')
        if self.bar is not None:
            self.bar.set_postfix_str(self._figures(runner))

    def after_train(self, runner) -> None:
        self.bar.close()
        if runner.iter < runner.max_iters:
            console.say(f'ended early, after step {runner.iter} of {runner.max_iters}')
        trained = {step: dice for step, dice in self.measured.items() if step}
        if trained and console.PART not in os.environ:
            best = max(trained, key=lambda step: trained[step])
            start = f', {self.measured[0]:.4f} at the start' if 0 in self.measured else ''
            console.say(f'validation Dice: {trained[best]:.4f} at step {best}{start}')
