"""Training loop counted in iterations, with its length given in epochs or iterations."""
from __future__ import annotations

import math
from itertools import count
from typing import Iterator

from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import DataLoader

from .config import check_settled

@LOOPS.register_module()
class PreferenceTrainLoop(IterBasedTrainLoop):
    """Checkpoints are named by iteration (``iter_200.pth``) while the guide counts epochs (``max_epochs=2``).

    Args:
        max_epochs: passes over the data; may be fractional. Ignored where ``max_iters`` is given.
        max_iters: optimiser steps.
        val_interval: iterations between validations; the last iteration always validates. ``'auto'``: see
            :func:`interval_of`.

    Raises:
        ValueError: neither length is given.
        InputError: the runner's config is not settled (see :func:`sa2va_dpo.engine.config.check_settled`).
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
            max_iters = max(1, math.ceil(max_epochs * len(dataloader)))
        _fit_schedules(runner, max_iters)
        if val_interval == 'auto':
            val_interval = interval_of(max_iters)
            runner.logger.info(f'{max_iters} iterations, validated every {val_interval}' if runner.val_loop else
                               f'{max_iters} iterations, saved every {val_interval}')
        super().__init__(runner, Endless(dataloader), max_iters=max_iters, val_begin=val_begin, val_interval=val_interval)
        self.dataloader = dataloader  # what mmengine looks at; the batches come through self.dataloader_iterator


class Endless:
    """The batches of a data loader, one epoch after the other, each shuffled anew.

    mmengine restarts a loader after a pause of two seconds, which with few images is a fifth of the training time, and
    starts its workers when the loop is built, long before the first batch is wanted.

    Raises:
        ValueError: the data loader gives no batch.
    """

    def __init__(self, dataloader: DataLoader) -> None:
        if not len(dataloader):
            raise ValueError('train_dataloader: no batch: fewer images than batch_size with drop_last')
        self.dataloader, self.dataset = dataloader, dataloader.dataset

    def __iter__(self) -> Iterator[dict]:
        for epoch in count():
            if hasattr(self.dataloader.sampler, 'set_epoch'):
                self.dataloader.sampler.set_epoch(epoch)
            yield from self.dataloader


def interval_of(max_iters: int, longest: int = 200, least: int = 5) -> int:
    """Iterations between validations of a run of ``max_iters``: ``longest``, or fewer so that there are ``least`` of them."""
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
