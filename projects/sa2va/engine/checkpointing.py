"""What a run leaves in its work directory while it trains, and in which order it becomes visible.

One validation belongs to one iteration: its entry in ``val_history.json``, the best file that it may have made and the
checkpoint of that iteration are one *commit*, written in this order, each beside its place, flushed and renamed:

1. ``best_<metric>_iter_N.pth``, when the metric is the best of training so far. Nothing names it yet.
2. ``iter_N.pth`` (a file, or DeepSpeed's directory), when it is due or there is a new best. Inside are the history up
   to N, with the name and hash of the best file, and the state of the hooks (early stopping, alarm).
3. ``val_history.json``. From here on the best file is the one that its entry names.
4. ``last_checkpoint``; then the former best file and checkpoints beyond ``max_keep_ckpts`` go.

So a checkpoint that a validation follows is written after that validation, not before. A run that is killed resumes
from its newest whole checkpoint, rewrites the history from it, and repeats what came after, a validation included.
"""
from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.registry import HOOKS

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import hash_file, publish, remove, write_json, write_text, writing
from sa2va_dpo.common.signals import deferred
from sa2va_dpo.models.checkpoint import check_names, read_trained_tensors

from .console_hook import SAID
from .run_folder import (
    BEST,
    CHECKPOINT,
    HISTORY_FILE,
    LAST_FILE,
    best_entry,
    damage,
    read_history,
    set_aside,
)

_HISTORY, _STATES = 'val_history', 'hook_states'  # in the message hub, which every checkpoint holds
# Attributes that decide what a hook of mmengine does next; our own hooks have state_dict() and load_state_dict().
_FOREIGN_STATES = {EarlyStoppingHook: ('wait_count', 'best_score')}
_MIB = 2 ** 20


@HOOKS.register_module()
class ExactCheckpointHook(CheckpointHook):
    """Checkpoints, the history of validations and the best file, in the order at the top of this module.

    Two habits of mmengine's hook are not kept. It writes a checkpoint twice when its validation is the best, the second
    time with a counter one ahead, so that a resume skips a batch (0.10.7). And it takes the untouched start (iteration
    0) for a result of training.

    Args:
        interval: iterations between checkpoints; ``'auto'``: as between validations.
        save_best: name of the metric of which the best step is kept; None keeps none.
        max_keep_ckpts: the newest checkpoints to keep; -1 keeps all.
        others: as mmengine's.

    Raises:
        ValueError: a setting that this hook does not have.
    """

    priority = 'VERY_LOW'

    def __init__(
        self, interval: int | str = 'auto', by_epoch: bool = False, save_best: str | None = None, **more
    ) -> None:
        if by_epoch:
            raise ValueError('by_epoch=True: checkpoints are named by iteration; set by_epoch=False')
        for name in ('out_dir', 'published_keys', 'filename_tmpl', 'backend_args', 'file_client_args'):
            if more.get(name) is not None:
                raise ValueError(f'{name}: not supported here; leave it out')
        if save_best is not None and (not isinstance(save_best, str) or save_best == 'auto'):
            raise ValueError(f'save_best={save_best!r}: must be the name of one metric, or None')
        if interval != 'auto' and (isinstance(interval, bool) or not isinstance(interval, int)):
            raise ValueError(f'interval={interval!r}: must be "auto" or a whole number of iterations')
        self.follows_validation = interval == 'auto'
        # Negative: never, until the training loop says how long it is.
        super().__init__(
            interval=-1 if self.follows_validation else interval, by_epoch=False, save_best=save_best, **more
        )
        self._due = self._is_best = False
        self.history: list[dict] = []

    # -- begin ------------------------------------------------------------------------------------------------------

    def before_run(self, runner) -> None:
        """After a resume: history, best file and hook states are those of the checkpoint; whatever is newer goes
        aside."""
        work_dir = Path(runner.work_dir)
        hub = runner.message_hub
        if runner.iter == 0:
            self.history = []
        elif _HISTORY in hub.runtime_info:
            self.history = [dict(entry) for entry in hub.get_info(_HISTORY)]
        else:  # a checkpoint of an earlier version
            self.history = [entry for entry in read_history(work_dir) if entry['iter'] <= runner.iter]
        barrier()
        if is_main_process():
            if runner.iter:
                # The end of a commit that a kill may have cut off.
                self._repair_best(runner)
                write_json(work_dir / HISTORY_FILE, self.history)
                write_text(work_dir / LAST_FILE, str(work_dir / self.filename_tmpl.format(runner.iter)))
                self._drop_old(work_dir)
            named = (best_entry(self.history) or {}).get('checkpoint')
            for line in set_aside(work_dir, runner.iter, named):
                runner.logger.info(line, extra=SAID)
        barrier()
        _restore_states(runner)

    def before_train(self, runner) -> None:
        self.out_dir = str(runner.work_dir)
        if self.follows_validation:
            self.interval = runner.train_loop.val_interval
        runner.logger.info(f'Checkpoints will be saved to {self.out_dir}.')
        if is_main_process():
            self._check_room(runner)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """mmengine loads with strict=False and would drop tensors with a warning; here that is an error."""
        model = getattr(runner.model, 'module', runner.model)
        check_names(model, {name.removeprefix('module.'): tensor for name, tensor in checkpoint['state_dict'].items()},
                    runner._load_from or 'the resumed checkpoint')

    def write_now(self, runner) -> None:
        """The checkpoint of the present iteration, whatever stood in its place (``engine/rounds.py``)."""
        self._due = True
        self._commit(runner, runner.iter)

    # -- on the way -------------------------------------------------------------------------------------------------

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        due = self.every_n_train_iters(runner, self.interval, self.save_begin) or (
            self.save_last and self.is_last_train_iter(runner))
        self._due = bool(due)
        if self._due and not _validation_follows(runner, runner.iter + 1):
            self._commit(runner, runner.iter + 1)

    def after_val_epoch(self, runner, metrics=None) -> None:
        """One more entry of the history: ``iter``, and every metric (JSON has no infinity: null stands for it)."""
        # The loop's own timings ride along in the metrics; they are no property of the model.
        values = {key: float(value) for key, value in (metrics or {}).items() if key not in ('time', 'data_time')}
        entry = dict(
            iter=runner.iter, **{key: value if math.isfinite(value) else None for key, value in values.items()}
        )
        before = [old for old in self.history if old['iter'] < runner.iter]
        self._is_best = self._better(entry, before)
        self.history = [*before, entry]

    def after_val(self, runner) -> None:
        """Every hook has seen the validation: it becomes visible."""
        self._commit(runner, runner.iter)

    def after_train(self, runner) -> None:
        """Nothing is published."""

    def _better(self, entry: dict, before: list[dict]) -> bool:
        if not self.save_best or entry['iter'] == 0:
            return False
        [name] = self.key_indicators
        if name not in entry:
            raise InputError(f'default_hooks.checkpoint.save_best={name!r}: validation has no such metric; it has '
                             f'{", ".join(key for key in entry if key != "iter")}')
        named = best_entry(before)
        return entry[name] is not None and (named is None or self.is_better_than[name](entry[name], named[name]))

    def _commit(self, runner, step: int) -> None:
        """Write what belongs to ``step``; a signal waits for the end."""
        work_dir, best = Path(runner.work_dir), self._is_best
        # An early end (EarlyStoppingHook, an alarm) has its checkpoint, too: there is no later one.
        save = step > 0 and (self._due or best or runner.train_loop.stop_training)
        self._due = self._is_best = False
        with deferred():
            if best:
                name = f'best_{self.key_indicators[0]}_iter_{step}.pth'.replace('/', '_')
                self._save(runner, step, name, optimizer=False)
                self.history[-1].update(checkpoint=name)
                if is_main_process():
                    self.history[-1].update(sha256=hash_file(work_dir / name))
            if save:
                runner.message_hub.update_info(_HISTORY, [dict(entry) for entry in self.history])
                runner.message_hub.update_info(_STATES, _collect_states(runner))
                self._save(runner, step, self.filename_tmpl.format(step), optimizer=self.save_optimizer)
            if is_main_process():
                if self.history:
                    write_json(work_dir / HISTORY_FILE, self.history)
                if save:
                    write_text(work_dir / LAST_FILE, str(work_dir / self.filename_tmpl.format(step)))
                    self._drop_old(work_dir)
            barrier()

    def _save(self, runner, step: int, name: str, optimizer: bool) -> None:
        """One checkpoint of ``step``, by all processes, beside its place and then in it."""
        work_dir, part = Path(runner.work_dir), f'.{name}.part'
        if is_main_process():
            remove(work_dir / part)
        barrier()
        loop, true_iter = runner.train_loop, runner.iter
        loop._iter = step - 1  # the runner adds one
        try:
            with writing(work_dir / name):
                runner.save_checkpoint(
                    str(work_dir),
                    part,
                    save_optimizer=optimizer,
                    save_param_scheduler=optimizer and self.save_param_scheduler,
                    by_epoch=False,
                    **self.args,
                )
        finally:
            loop._iter = true_iter
        barrier()
        if is_main_process():
            publish(work_dir / part, work_dir / name)
        barrier()
        runner.logger.info(f'Saved {name}')

    def _drop_old(self, work_dir: Path) -> None:
        named = best_entry(self.history)
        if named is not None:
            for path in work_dir.glob('best_*.pth'):
                match = BEST.fullmatch(path.name)
                if match and path.name != named['checkpoint'] and int(match.group(1)) <= self.history[-1]['iter']:
                    remove(path)
        if self.max_keep_ckpts > 0:
            steps = sorted(
                int(match.group(1)) for path in work_dir.iterdir() if (match := CHECKPOINT.fullmatch(path.name))
            )
            for step in steps[:-self.max_keep_ckpts]:
                remove(work_dir / self.filename_tmpl.format(step))

    def _repair_best(self, runner) -> None:
        """The best file that the history names, written again from its own checkpoint where it is missing or
        another."""
        entry = best_entry(self.history)
        if entry is None:
            return
        work_dir = Path(runner.work_dir)
        file, source = work_dir / entry['checkpoint'], work_dir / self.filename_tmpl.format(entry['iter'])
        if file.is_file() and entry.get('sha256') in (None, hash_file(file)):
            return
        if source.exists() and damage(source) is None:
            part = work_dir / f'.{file.name}.part'
            remove(part)
            with writing(file):
                torch.save(dict(meta=dict(iter=entry['iter']), state_dict=read_trained_tensors(source)), part)
            publish(part, file)
            entry.update(sha256=hash_file(file))
            runner.logger.warning(f'{file}: was missing or damaged; written again from {source.name}')
            return
        del entry['checkpoint']
        entry.pop('sha256', None)
        runner.logger.warning(
            f'{file}: is missing or damaged and cannot be restored; the next validation makes a new best'
        )

    def _check_room(self, runner) -> None:
        """Refuse to start where the disk cannot hold what will be kept; a checkpoint is float32 and AdamW's two
        moments."""
        model = getattr(runner.model, 'module', runner.model)
        numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
        size, left = 12 * numbers, runner.max_iters - runner.iter
        count = math.ceil(left / self.interval) if self.interval > 0 else 1
        if self.max_keep_ckpts > 0:
            count = min(count, self.max_keep_ckpts + 1)
        needed, free = size * count + 2 * 4 * numbers, shutil.disk_usage(runner.work_dir).free
        if needed > free and left > 0:
            raise InputError(
                f'{runner.work_dir}: {count} checkpoints of about {size / _MIB:.0f} MiB need {needed / _MIB:.0f} MiB, '
                f'the disk has {free / _MIB:.0f}: make room, choose another --work-dir, or set '
                f'default_hooks.checkpoint.max_keep_ckpts'
            )


def _validation_follows(runner, step: int) -> bool:
    """Whether the loop validates once it has counted ``step``."""
    loop = runner.train_loop
    return runner.val_loop is not None and step >= loop.val_begin and (
        step % loop.val_interval == 0 or step == loop.max_iters)


def _collect_states(runner) -> dict[str, Any]:
    states: dict[str, Any] = dict(stopped=bool(runner.train_loop.stop_training))
    for hook in runner.hooks:
        if hasattr(hook, 'state_dict'):
            states[type(hook).__name__] = hook.state_dict()
        for kind, names in _FOREIGN_STATES.items():
            if isinstance(hook, kind):
                states[type(hook).__name__] = {name: getattr(hook, name) for name in names}
    return states


def _restore_states(runner) -> None:
    if runner.iter == 0 or _STATES not in runner.message_hub.runtime_info:
        return
    states = runner.message_hub.get_info(_STATES)
    for hook in runner.hooks:
        state = states.get(type(hook).__name__)
        if state is None:
            continue
        if hasattr(hook, 'load_state_dict'):
            hook.load_state_dict(state)
        for kind, names in _FOREIGN_STATES.items():
            if isinstance(hook, kind):
                for name in names:
                    setattr(hook, name, state[name])
    if states.get('stopped'):
        runner.train_loop.stop_training = True
        runner.logger.info(
            f'This run had been stopped at iteration {runner.iter} (early stopping or an alarm): it ends here. '
            'Start anew to train for longer.', extra=SAID
        )
