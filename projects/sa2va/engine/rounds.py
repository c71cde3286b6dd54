"""Rounds: between equal stretches of one run the pairs are mined anew from the policy as it is (docs/rounds.md).

At the boundary between two rounds, in this order:

1. Validation says what the round that ends was worth; the guard's decision is written to ``rounds.json``.
2. A round that lowered the metric is taken back: trained tensors and optimiser return to where it began, iteration and
   learning-rate schedule go on.
3. The state with which the next round begins is written beside the pairs, then as ``iter_N.pth``.
4. The next round is mined. Its pairs name the state of the policy that made them.
5. The round is written to ``rounds.json``, and training goes on with its pairs.

A run that is killed anywhere resumes from its newest checkpoint and repeats what was not written yet; every step can be
done twice.
"""
from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import make_directory, publish, remove
from sa2va_dpo.datasets.annotations import PAIRS_FILE, VAL_FILE
from sa2va_dpo.datasets.seg_dataset import preprocessor_of
from sa2va_dpo.models.checkpoint import read_trained_tensors
from sa2va_dpo.models.view_geometry import ViewGeometry

from .checkpointing import ExactCheckpointHook
from .console_hook import SAID
from .guard import KEPT, TAKEN_BACK, Guard
from .mining import Images, Mined, PicksWanted, RoundMiner, policy_digest
from .pair_validation import bare_model
from .round_images import held_out_images, labelled_images, unlabelled_images, without_known
from .round_settings import RoundSettings, boundaries
from .round_state import RoundState
from .run_folder import damage

__all__ = ['PicksWanted', 'RoundsHook', 'install_rounds']


def install_rounds(cfg: Config) -> list[str]:
    """Make a run with ``rounds`` one that mines its own pairs, in place; before its caches are prepared.

    Args:
        cfg: ``rounds`` is None or the settings of :class:`RoundSettings`. ``train_dataloader.dataset`` is the
            ``DPOVesselDataset`` of a plain run: its settings hold for the mined pairs; of its ``data_root`` only the
            labelled and the validation images are used.

    Returns:
        Lines for the log.

    Raises:
        InputError: impossible settings, or images that cannot be used.
    """
    if cfg.get('rounds') is None:
        return []
    settings = RoundSettings.from_config(cfg.rounds)
    data = dict(cfg.train_dataloader.dataset)
    if data.pop('type') not in ('DPOVesselDataset',):
        raise InputError('rounds: train_dataloader.dataset must be a DPOVesselDataset, whose settings hold for the '
                         'mined pairs')
    if 'preference' not in cfg.model:
        raise InputError(f'rounds: model.type={cfg.model.type} trains on masks, rounds need preference pairs: set '
                         f'model.type="Sa2VADPOModel"')
    if settings.reference == 'round' and cfg.model.get('reference', 'initial') not in ('initial', 'copy'):
        raise InputError(f'rounds.reference="round": model.reference={cfg.model.reference!r} cannot be reset: set '
                         f'model.reference="initial"')
    root = data['data_root']
    held_out = held_out_images(root)
    labelled = labelled_images(settings.labelled, root)
    unlabelled, known = without_known(unlabelled_images(settings.unlabelled), [image for image, _ in labelled],
                                      held_out)
    if settings.unlabelled is not None and not unlabelled:
        raise InputError(f'rounds.unlabelled: {settings.unlabelled}: every image there is a labelled one: set '
                         'rounds.unlabelled=None')
    check = held_out.get(VAL_FILE, [])
    data.pop('ann_file', None)
    cfg.train_dataloader.dataset = dict(
        data, type='RoundPairs', labelled_images=[str(image) for image, _ in labelled], prompt=settings.prompt,
        unlabelled_images=[str(image) for image in unlabelled], labelled_share=settings.labelled_share)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(
        type='RoundsHook', settings=dict(cfg.rounds), labelled=[[str(a), str(b)] for a, b in labelled],
        unlabelled=[str(image) for image in unlabelled], check=[[str(a), str(b)] for a, b in check],
        data_root=str(root))]
    lines = [f'rounds: {settings.count}, {len(labelled)} labelled and {len(unlabelled)} unlabelled images'
             + (f', judged by {settings.judge}' if unlabelled else '')]
    if known:
        lines.append(f'rounds: {len(known)} of the unlabelled images are labelled ones and are used as such, the '
                     f'first is {known[0]}')
    if not labelled and not check:
        lines.append('rounds: no labelled image at all: nothing tells whether the masks become better or worse')
    return lines


@HOOKS.register_module()
class RoundsHook(Hook):
    """Args:
        settings: ``cfg.rounds``.
        labelled, check: (image, mask) paths.
        unlabelled: image paths.
        data_root: of the run, whose pairs may be the first round's.
    """

    priority = 'LOWEST'

    def __init__(self, settings: dict, labelled: list, unlabelled: list, check: list,
                 data_root: str | None = None) -> None:
        self.data_root = data_root
        self.settings = RoundSettings.from_config(settings)
        self.guard = None if self.settings.guard is None else Guard(**self.settings.guard)
        self.images = Images([(Path(a), Path(b)) for a, b in labelled], [Path(image) for image in unlabelled],
                             [(Path(a), Path(b)) for a, b in check])
        self.measured: tuple[int, dict] | None = None
        self.entered: int | None = None

    def after_val_epoch(self, runner, metrics=None) -> None:
        self.measured = runner.iter, dict(metrics or {})

    def before_train(self, runner) -> None:
        self.bounds = boundaries(runner.max_iters, self.settings.count)
        self.state = RoundState(runner.work_dir)
        self.state.read(runner.iter)
        for record in self.state.rounds:
            if record['iteration'] != self.bounds[record['round']]:
                raise InputError(f'{self.state.path}: round {record["round"]} began at iteration '
                                 f'{record["iteration"]}, with this length '
                                 f'of the run it would at {self.bounds[record["round"]]}: resume with the same length '
                                 'and rounds.count')
        data = runner.cfg.train_dataloader.dataset
        view = None if data.get('view') is None else ViewGeometry.of(data.view)
        self.miner = RoundMiner(self.settings, self.images, runner.cfg.model.checkpoint,
                                preprocessor_of(str(data.preprocessor), view), runner.seed, data.get('cache'),
                                partial(runner.logger.info, extra=SAID), self.data_root)
        if runner.val_loop is None and self.guard is not None:
            runner.logger.warning('rounds.guard: off, this run has no validation: no round will be taken back')
            self.guard = None

    # -- the boundary -----------------------------------------------------------------------------------------------

    def between_steps(self, runner) -> None:
        """At the first iteration of a round: end the one before, mine, enter. In the middle of one: enter it."""
        number = max(r for r in range(self.settings.count + 1) if self.bounds[r] <= runner.iter)
        if self.entered == number:
            return
        if runner.iter > self.bounds[number]:
            self._enter(runner, number, self._committed(number))
            return
        settled = bool(self.state.rounds) and self.state.rounds[-1].get('settled', False)
        if settled:
            self._say_end(runner)
        elif not self._is_committed(runner, number):
            self._begin(runner, number)
        if number < self.settings.count and not runner.train_loop.stop_training:
            self._enter(runner, number, self._committed(number))
        self.entered = number

    def _begin(self, runner, number: int) -> None:
        """End the round before ``number``, and mine ``number`` unless the run ends here."""
        del self.state.rounds[number:]
        metric = None
        if number:
            metric = self._judge_round(runner, number - 1)
            self._phase(runner, 'decided')
            if self.state.rounds[-1]['decision'] == TAKEN_BACK:
                self._take_back(runner, number - 1)
            self._say_end(runner)
        elif self.guard is not None:
            metric = self._measure(runner)
        last = number == self.settings.count or runner.train_loop.stop_training
        if not last:
            self._write_start(runner, number)
        if number:
            self._checkpoint_hook(runner).write_now(runner)
            self._phase(runner, 'saved')
        if last:
            self.state.rounds[-1]['settled'] = True
            self.state.write()
            self._forget_start(number - 1)
            return
        mined = self._mine(runner, number)
        self.state.rounds.append(dict(
            round=number, iteration=runner.iter, metric=metric, decision=None, decided_at=None, metric_after=None,
            data={name: None if root is None else root.relative_to(runner.work_dir).as_posix()
                  for name, root in (('labelled', mined.labelled), ('unlabelled', mined.unlabelled))}, **mined.record))
        self.state.write()
        self._forget_start(number - 1)
        self._phase(runner, 'committed')

    def _say_end(self, runner) -> None:
        if self.state.ended:
            runner.logger.warning(f'rounds: {self.state.ended}')
            runner.train_loop.stop_training = True

    def _judge_round(self, runner, number: int) -> float | None:
        """Decide about a round that has ended; the value with which the next begins."""
        record = self.state.rounds[number]
        if record['decision'] is None:
            if self.guard is None:
                record.update(decision=KEPT, decided_at=runner.iter)
            else:
                after = self._measure(runner)
                record.update(decision=self.guard.decide(record['metric'], after), decided_at=runner.iter,
                              metric_after=after)
                decisions = [r['decision'] for r in self.state.rounds]
                if self.guard.exhausted(decisions) and number + 1 < self.settings.count:
                    first = number - self.guard.patience + 1
                    what = f'round {number}' if first == number else f'each of the rounds {first} to {number}'
                    self.state.ended = (
                        f'{what} lowered {self.guard.metric}: the run ends at iteration {runner.iter} with '
                        'what it had before'
                    )
                runner.logger.info(f'round {number}: {self.guard.metric} {record["metric"]:.4f} before, {after:.4f} '
                                   f'after: {record["decision"]}', extra=SAID)
            self.state.write()
        return record['metric'] if record['decision'] == TAKEN_BACK else record['metric_after']

    def _measure(self, runner) -> float:
        """The guard's metric of the policy as it is."""
        if self.measured is None or self.measured[0] != runner.iter:
            runner.val_loop.run()
        return self.guard.value(self.measured[1])

    def _mine(self, runner, number: int) -> Mined:
        model, folder = bare_model(runner.model), self.state.folder(number)
        runner.logger.info(f'round {number}: mining pairs of {len(self.images.labelled)} labelled and '
                           f'{self.miner.unlabelled_in(number)} unlabelled images from the policy at iteration '
                           f'{runner.iter}', extra=SAID)
        try:
            mined = self.miner.mine(number, model, folder, lambda name: self._phase(runner, name))
        except PicksWanted as wanted:
            self.state.wait_for(dict(round=number, root=str(wanted.root), decided=wanted.decided, wanted=wanted.wanted))
            raise
        self.state.wait_for(None)
        if mined.labelled is None and mined.unlabelled is None:
            raise InputError(f'rounds: round {number} has no usable pair: lower rounds.min_iou_gap, raise '
                             'rounds.num_samples, or give other images')
        for name in ('labelled', 'unlabelled'):
            if name in mined.record:
                runner.logger.info(f'round {number}: {name}: {_line(mined.record[name])}', extra=SAID)
        runner.logger.info(f'round {number}: mined in {mined.record["seconds"]:.1f} s')
        return mined

    def _enter(self, runner, number: int, record: dict[str, Any]) -> None:
        """Train on the pairs of a round from here on."""
        self.entered = number
        roots = {name: None if root is None else str(Path(runner.work_dir) / root)
                 for name, root in record['data'].items()}
        loader = {**runner.cfg.train_dataloader, 'dataset': {**runner.cfg.train_dataloader.dataset, **roots}}
        runner.train_loop.exchange(runner.build_dataloader(loader, seed=runner.seed), since=self.bounds[number])
        if self.settings.reference == 'round':
            self._set_reference(runner, number)

    def _set_reference(self, runner, number: int) -> None:
        """The policy with which a round began is the reference."""
        model = bare_model(runner.model)
        if not model.preference.use_reference:
            return
        if runner.iter == self.bounds[number]:
            model.reset_reference()
            return
        tensors = read_trained_tensors(self._find_start(runner, number))
        policy = {name.removeprefix('module.').removeprefix('policy.'): tensor for name, tensor in tensors.items()}
        own = dict(model.policy.named_parameters())
        # Through the policy's own tensors: dtype and device are theirs then.
        model.reference.load_reference(model.policy, {name: tensor.to(own[name].dtype)
                                                      for name, tensor in policy.items()})

    # -- states -----------------------------------------------------------------------------------------------------

    def _write_start(self, runner, number: int) -> None:
        """The state of the policy and of the optimiser as a round begins, for its guard and its reference."""
        if self.guard is None and self.settings.reference == 'initial':
            return
        target = self.state.start_file(number)
        part = target.with_name(f'.{target.name}.part')
        if is_main_process():
            make_directory(target.parent)
            remove(part)
        barrier()
        runner.save_checkpoint(str(target.parent), part.name, save_optimizer=True, save_param_scheduler=False,
                               by_epoch=False)
        barrier()
        if is_main_process():
            publish(part, target)
        barrier()

    def _find_start(self, runner, number: int) -> Path:
        own, checkpoint = self.state.start_file(number), Path(runner.work_dir) / f'iter_{self.bounds[number]}.pth'
        for path in (own, checkpoint):
            if path.exists() and damage(path) is None:
                return path
        raise InputError(f'{own}: missing, and so is {checkpoint.name}: nothing tells how round {number} began: '
                         'resume from an earlier checkpoint, or start anew')

    def _forget_start(self, number: int) -> None:
        if number >= 0 and is_main_process():
            remove(self.state.start_file(number))
        barrier()

    def _take_back(self, runner, number: int) -> None:
        """Trained tensors and optimiser as they were when the round began; iteration and schedule go on."""
        groups = runner.optim_wrapper.param_groups
        rates = [group['lr'] for group in groups]
        engine = getattr(runner.model, 'model', None)  # DeepSpeed's, in mmengine's wrapper
        counters = {name: getattr(engine, name) for name in ('micro_steps', 'global_steps', 'global_samples')
                    if hasattr(engine, name)}
        runner.strategy.resume(str(self._find_start(runner, number)), resume_optimizer=True,
                               resume_param_scheduler=False)
        for group, rate in zip(runner.optim_wrapper.param_groups, rates):
            group['lr'] = rate
        for name, value in counters.items():
            setattr(engine, name, value)
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if accumulated > 1:
            runner.optim_wrapper.initialize_count_status(runner.model, runner.iter, runner.max_iters)
        self.measured = None
        runner.logger.info(f'round {number}: taken back', extra=SAID)

    # -- small things -----------------------------------------------------------------------------------------------

    def _committed(self, number: int) -> dict[str, Any]:
        if number >= len(self.state.rounds):
            raise InputError(f'{self.state.path}: has no round {number}, in which this run stands: resume from a '
                             'checkpoint of an earlier round, or start anew')
        return self.state.rounds[number]

    def _is_committed(self, runner, number: int) -> bool:
        """Whether this round was mined before, from the policy as it is now; the end of the run is never."""
        if number >= len(self.state.rounds):
            return False
        record = self.state.rounds[number]
        return record['policy'] == policy_digest(bare_model(runner.model)) and all(
            root is None or (Path(runner.work_dir) / root / PAIRS_FILE).is_file()
            for root in record['data'].values())

    def _checkpoint_hook(self, runner) -> ExactCheckpointHook:
        for hook in runner.hooks:
            if isinstance(hook, ExactCheckpointHook):
                return hook
        raise InputError("rounds: default_hooks.checkpoint must be an ExactCheckpointHook: a round's end is a "
                         "checkpoint")

    def _phase(self, runner, name: str) -> None:
        """Tell other hooks where the boundary stands."""
        barrier()
        runner.call_hook('round_phase', name=name)


def _line(record: dict) -> str:
    words = [f'{record["pairs"]} pairs of {record["images"]} images, {record["usable_share"]:.0%} of them usable']
    for name, label in (('diversity', 'diversity'), ('greedy_score', 'greedy by the judge'),
                        ('best_score', 'best by the judge'), ('greedy_iou', 'greedy IoU'),
                        ('best_iou', 'best IoU'), ('chosen_iou', 'chosen IoU')):
        value = record.get(name)
        if value is not None and math.isfinite(value):
            words.append(f'{label} {value:.4f}')
    return ', '.join(words)
