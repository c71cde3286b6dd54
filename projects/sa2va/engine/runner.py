"""The runner that configs name: whoever builds it (tools/train.py, xtuner train) gets the same run."""
from __future__ import annotations

import copy
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import RUNNERS

from sa2va_dpo.caching.prepare import prepare
from sa2va_dpo.common.console import is_quiet, say
from sa2va_dpo.common.errors import setting
from sa2va_dpo.common.processes import rank
from sa2va_dpo.models.checkpoint import weights_only_loads

from .activation_hook import ActivationMemoryHook
from .config import derive, save
from .console_hook import SAID, ConsoleHook
from .guarded_runner import GuardedRunner
from .offload import OffloadHook
from .precheck import precheck
from .rounds import install_rounds
from .run_record import claim_training
from .strategy import fit_to_machine
from .trackers import check_trackers, install_trackers


@RUNNERS.register_module()
class Sa2VARunner(GuardedRunner):
    """mmengine's FlexibleRunner after the config was settled, saved, fitted to the machine and its caches were
    filled."""

    @classmethod
    def from_cfg(cls, cfg: Config | ConfigDict | dict, overwrite: bool = False) -> 'Sa2VARunner':
        """Build from a config; the work directory is this run's from now on, and what runs is saved there as
        ``config.py``.

        Args:
            overwrite: remove what another run left in the work directory.

        Raises:
            InputError: a bad setting or file (see :func:`sa2va_dpo.engine.config.derive` and
                :func:`sa2va_dpo.engine.precheck.precheck`), a work directory of another run (see
                :func:`sa2va_dpo.engine.run_record.claim_training`), or no place for the caches.
        """
        cfg = copy.deepcopy(cfg) if isinstance(cfg, Config) else Config(copy.deepcopy(dict(cfg)))
        missing = derive(cfg)
        if rank() == 0:
            check_trackers(cfg)
            precheck(cfg)
        work_dir = cfg.setdefault('work_dir', f'work_dirs/{Path(cfg.filename or "run").stem}')
        for line in claim_training(cfg, overwrite):
            say(line)
        if rank() == 0:
            # Before the machine's adaptations: this file starts the same run on any machine.
            save(cfg, Path(work_dir) / 'config.py')
        with setting('config'):
            machine, rounds = fit_to_machine(cfg), install_rounds(cfg)
            install_trackers(cfg)
        caches = prepare(cfg)
        runner = super().from_cfg(cfg)
        for line in missing:
            runner.logger.warning(line)
        for line in rounds:
            runner.logger.info(line, extra=SAID)
        for line in [machine, *caches]:
            runner.logger.info(line)
        runner.register_hook(ActivationMemoryHook())
        runner.register_hook(OffloadHook())
        if is_quiet():
            runner.register_hook(ConsoleHook(machine))
        return runner

    def dump_config(self) -> None:
        """``config.py`` is written already; mmengine would write what this machine made of it, too."""

    def train(self):
        """Train; a checkpoint to resume from is read without running code that it may hold."""
        with weights_only_loads():
            return super().train()
