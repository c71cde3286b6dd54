"""Training loop counted in iterations, its length given in epochs or iterations; every step can be entered exactly."""
from __future__ import annotations

import math
from typing import Callable, Iterator

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import DataLoader

from .config import check_settled
from .sampling import DrawSampler


@LOOPS.register_module()
class PreferenceTrainLoop(IterBasedTrainLoop):
    """Checkpoints are named by iteration (``iter_200.pth``) while the guide counts epochs (``max_epochs=2``).

    Nothing random in a step depends on the steps before it: the draws of step i (``engine/sampling.py``) and the state
    of torch's random numbers (dropout) follow from the run's seed, i and the process. A resumed run therefore enters at
    its step without reading what came before, and repeats what an uninterrupted one does.

    Hooks may have a method ``between_steps(runner)``: called before the first step, and after every step once its
    validation and its checkpoint are done.

    Args:
        max_epochs: passes over the data; may be fractional. Ignored where ``max_iters`` is given.
        max_iters: optimiser steps.
        val_interval: iterations between validations; the last iteration always validates. ``'auto'``: see
            :func:`interval_of`.

    Raises:
        InputError: the runner's config is not settled (see :func:`sa2va_dpo.engine.config.check_settled`).
        ValueError: neither length is given, or the sampler is no :class:`DrawSampler`.
    """

    def __init__(self, runner, dataloader, max_epochs: float | None = None, max_iters: int | None = None,
                 val_begin: int = 1, val_interval: int | str = 'auto') -> None:
        check_settled(runner.cfg)
        if max_epochs is None and max_iters is None:
            raise ValueError('train_cfg: give max_epochs or max_iters')
        if isinstance(dataloader, dict):
            # The sampler seed must be the run's own, as the base class would do it.
            dataloader = runner.build_dataloader(dataloader, seed=runner.seed)
        if max_iters is None:
            max_iters = max(1, math.ceil(max_epochs * len(dataloader.dataset) / draws_per_step(dataloader)))
        _fit_schedules(runner, max_iters)
        if val_interval != 'auto' and (
            isinstance(val_interval, bool) or not isinstance(val_interval, int) or val_interval < 1
        ):
            raise ValueError(f'train_cfg.val_interval {val_interval!r}: must be "auto" or a whole number of at least 1')
        if val_interval == 'auto':
            val_interval = interval_of(max_iters)
            what = 'validated' if runner.cfg.get('val_cfg') else 'saved'
            runner.logger.info(f'{max_iters} iterations, {what} every {val_interval}')
        stream = DrawStream(dataloader, lambda: self._iter)
        super().__init__(runner, stream, max_iters=max_iters, val_begin=val_begin, val_interval=val_interval)
        self.dataloader, self.dataloader_iterator = dataloader, stream

    def exchange(self, dataloader: DataLoader, since: int) -> None:
        """Go on with other data.

        Args:
            since: the step from which passes over them are counted.
        """
        self.dataloader = dataloader
        self.dataloader_iterator = DrawStream(dataloader, lambda: self._iter, since)

    def run(self) -> torch.nn.Module:
        """Train from the current iteration to the last."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self.runner.call_hook('between_steps')
        # Walks over every module, so not in each step: a checkpoint is loaded for prediction, and a validation leaves
        # the model predicting, which its own flag says.
        self.runner.model.train()
        while self._iter < self._max_iters and not self.stop_training:
            if not self.runner.model.training:
                self.runner.model.train()
            data_batch = next(self.dataloader_iterator)
            seed_step(self.runner.seed, self._iter, get_rank())
            self.run_iter(data_batch)
            self._decide_current_val_interval()
            if (self.runner.val_loop is not None and self._iter >= self.val_begin
                    and (self._iter % self.val_interval == 0 or self._iter == self._max_iters)):
                self.runner.val_loop.run()
            self.runner.call_hook('between_steps')
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model


def seed_step(seed: int, step: int, rank: int) -> None:
    """Set torch's random numbers, on the CPU and on every device, for one step of one process."""
    [state] = np.random.SeedSequence([seed, 3, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state >> np.uint64(1)))


def draws_per_step(dataloader: DataLoader) -> int:
    """Images that all processes together visit in an iteration."""
    return dataloader.batch_size * get_world_size()


class DrawStream:
    """The batches of a data loader from the current step on, without end.

    Made when the first batch is wanted: mmengine would start the workers when the loop is built, and wait two seconds
    after every pass.

    Args:
        step: gives the iteration whose batch is wanted first.
        since: the iteration from which passes over the data are counted.

    Raises:
        ValueError: the data loader's sampler does not draw (``engine/sampling.py``).
    """

    def __init__(self, dataloader: DataLoader, step: Callable[[], int], since: int = 0) -> None:
        if not isinstance(dataloader.sampler, DrawSampler):
            raise ValueError(f'train_dataloader.sampler: {type(dataloader.sampler).__name__} repeats itself at every '
                             'pass: use '
                             f"dict(type='DrawSampler', shuffle=True)")
        self.dataloader, self.dataset, self.step, self.since = dataloader, dataloader.dataset, step, since
        self._batches: Iterator[dict] | None = None

    def __iter__(self) -> 'DrawStream':
        return self

    def __next__(self) -> dict:
        if self._batches is None:
            draws = draws_per_step(self.dataloader)
            self.dataloader.sampler.start_at(self.step() * draws, self.since * draws)
            self._batches = iter(self.dataloader)
        return next(self._batches)


def interval_of(max_iters: int, longest: int = 200, least: int = 5) -> int:
    """Iterations between validations of a run of ``max_iters``: ``longest``, or fewer, for ``least`` validations."""
    return max(1, min(longest, max_iters // least))


def _fit_schedules(runner, max_iters: int) -> None:
    """Give one-cycle schedules the run's length, and leave out schedules that would begin after the last iteration.

    mmengine refuses the latter, and few images make few steps.
    """
    schedules = runner.param_schedulers
    if not isinstance(schedules, list):
        return
    for schedule in schedules:
        if isinstance(schedule, dict) and schedule.get('total_steps') == 'auto':
            schedule['total_steps'] = max_iters
    kept = [s for s in schedules
            if not isinstance(s, dict) or s.get('by_epoch', True) or s.get('begin', 0) < max_iters]
    if len(kept) < len(schedules):
        runner.logger.info(f'{len(schedules) - len(kept)} learning-rate schedule begins after the last of {max_iters} '
                           'iterations and is left out')
        runner.param_schedulers = kept
