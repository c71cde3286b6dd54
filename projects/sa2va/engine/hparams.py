"""A run's hyper-parameters and final figures, for TensorBoard's tab HPARAMS, in which runs are compared."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping, Sequence

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.visualization import TensorboardVisBackend

from sa2va_dpo.common.errors import InputError

from .config import read_config
from .recipe import differing, recipe
from .run_folder import read_history
from .run_record import plain

# What only says how a run looks while it goes.
_NO_PARAMETERS = ('default_hooks', 'custom_hooks', 'log_interval', 'trackers', 'visualizer', 'randomness')


@HOOKS.register_module()
class HParamsHook(Hook):
    """Writes, once a run has ended, what it was trained with and what came of it into its TensorBoard event file.

    Hyper-parameters are the recipe (facts, objective, what is trained) and every setting in which the run differs from
    its config file; figures are ``final/...`` of :func:`final_figures`. A run that is interrupted writes none; its
    resumption does.
    """

    priority = 'LOWEST'

    def after_train(self, runner) -> None:
        if not is_main_process():
            return
        writers = [backend.experiment for backend in runner.visualizer._vis_backends.values()
                   if isinstance(backend, TensorboardVisBackend)]
        if not writers:
            return
        history = read_history(runner.work_dir) if runner.val_loop is not None else []
        losses = runner.message_hub.log_scalars.get('train/loss')
        loss = None if losses is None else losses.mean(runner.log_processor.window_size)
        figures = final_figures(history, runner.iter, loss)
        for writer in writers:
            write(writer, hyper_parameters(Path(runner.work_dir) / 'config.py', runner.cfg.filename), figures,
                  runner.iter)


def hyper_parameters(used: Path, named: str | None) -> dict[str, bool | float | str]:
    """Name -> value of what a run was trained with.

    Args:
        used: the run's own ``config.py``, as it was before the machine's adaptations.
        named: the config file that the run was started with.
    """
    try:
        here = plain(read_config(str(used)))
    except InputError:
        return {}
    found = {name: value for name, value in recipe(here) if name not in _NO_PARAMETERS}
    try:
        default = plain(read_config(str(named)))
    except InputError:
        default = here  # moved since
    for name, _, value in differing(default, here):
        if name.partition('.')[0] not in _NO_PARAMETERS:
            found.setdefault(name, value)
    return {name: _typed(value) for name, value in found.items()}


def _typed(text: str) -> bool | float | str:
    """A number where a setting is one, so that the tab can sort and filter by it."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (bool, int, float)) else text


def final_figures(history: Sequence[Mapping[str, Any]], step: int, loss: float | None = None) -> dict[str, float]:
    """What came of a run: ``final/step`` and, where it was validated, Dice and clDice of the last validation and of the
    best step of training (by Dice), that step, Dice of the start and the gain over it; ``final/loss`` is the mean over
    the last window.

    Args:
        history: of validations (``val_history.json``).
        step: the last iteration.
    """
    # The tab shows the first ones.
    figures: dict[str, float | None] = {}
    trained = [entry for entry in history if entry['iter'] > 0 and entry.get('dice') is not None]
    start = next((entry.get('dice') for entry in history if entry['iter'] == 0), None)
    if trained:
        best, last = max(trained, key=lambda entry: entry['dice']), trained[-1]
        figures.update({'final/best_dice': best['dice'], 'final/best_step': best['iter'],
                        'final/best_cldice': best.get('cldice'), 'final/last_dice': last['dice'],
                        'final/last_cldice': last.get('cldice'),
                        'final/gain': None if start is None else best['dice'] - start,
                        'final/last_pair_accuracy': last.get('pairs/accuracy')})
    figures.update({'final/start_dice': start, 'final/loss': loss, 'final/step': step})
    return {name: float(value) for name, value in figures.items() if value is not None}


def write(writer, parameters: Mapping[str, Any], figures: Mapping[str, float], step: int) -> None:
    """Into an open ``SummaryWriter``; torch's own ``add_hparams`` would begin a second event folder."""
    from torch.utils.tensorboard.summary import hparams

    for summary in hparams(dict(parameters), dict(figures)):
        writer.file_writer.add_summary(summary)
    for name, value in figures.items():
        writer.add_scalar(name, value, step)
    writer.flush()
