"""The runner that configs name: whoever builds it (tools/train.py, xtuner train) gets the same run."""
from __future__ import annotations

import copy
import os
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner

from sa2va_dpo.caching.prepare import prepare
from sa2va_dpo.models.checkpoint import weights_only_loads
from .config import derive, save
from .strategy import fit_to_machine


@RUNNERS.register_module()
class Sa2VARunner(FlexibleRunner):
    """mmengine's FlexibleRunner, once the config is settled, saved and fitted to the machine and its caches are filled."""

    @classmethod
    def from_cfg(cls, cfg: Config | ConfigDict | dict) -> 'Sa2VARunner':
        """Build from a config; what runs is saved as ``config.py`` of the work directory.

        Raises:
            InputError: a bad setting (see :func:`sa2va_dpo.engine.config.derive`), or no place for the caches.
        """
        cfg = copy.deepcopy(cfg) if isinstance(cfg, Config) else Config(copy.deepcopy(dict(cfg)))
        lines = derive(cfg)
        work_dir = cfg.setdefault('work_dir', f'work_dirs/{Path(cfg.filename or "run").stem}')
        if int(os.environ.get('RANK', 0)) == 0:
            os.makedirs(work_dir, exist_ok=True)
            # Before the machine's adaptations: this file starts the same run on any machine.
            save(cfg, Path(work_dir) / 'config.py')
        lines += [fit_to_machine(cfg), *prepare(cfg)]
        runner = super().from_cfg(cfg)
        for line in lines:
            runner.logger.info(line)
        return runner

    def dump_config(self) -> None:
        """``config.py`` is written already; mmengine would write what this machine made of it, too."""

    def train(self):
        """Train; a checkpoint to resume from is read without running code that it may hold."""
        with weights_only_loads():
            return super().train()
