"""mmengine's runner with the boundary for users' mistakes at every place where a setting is handed to a library."""
from __future__ import annotations

from typing import Callable

from mmengine.config import Config
from mmengine.runner import FlexibleRunner

from sa2va_dpo.common.errors import setting

from .console_hook import quieten

# Method of the runner or its strategy -> the setting that it builds from.
_OF_RUNNER = dict(
    build_strategy='strategy',
    build_train_loop='train_cfg or train_dataloader',
    build_val_loop='val_cfg or val_dataloader',
    build_test_loop='test_cfg or test_dataloader',
    build_evaluator='val_evaluator',
    build_visualizer='visualizer',
    build_log_processor='log_processor',
    register_default_hooks='default_hooks',
    register_custom_hooks='custom_hooks',
)
_OF_STRATEGY = dict(build_model='model', build_optim_wrapper='optim_wrapper', build_param_scheduler='param_scheduler',
                    prepare='strategy')


def _guarded(name: str, method: Callable) -> Callable:
    def call(*args, **kwargs):
        with setting(name):
            return method(*args, **kwargs)
    return call


class GuardedRunner(FlexibleRunner):
    """What mmengine, torch or peft raise about a value of the config while the run is built becomes one line that names
    the section; training itself is not guarded: what goes wrong there is no setting."""

    @classmethod
    def from_cfg(cls, cfg: Config) -> 'GuardedRunner':
        with setting('config'):
            return super().from_cfg(cfg)

    def __getattribute__(self, name: str):
        value = super().__getattribute__(name)
        if name in _OF_RUNNER:
            return _guarded(_OF_RUNNER[name], value)
        return value

    def register_default_hooks(self, hooks=None) -> None:
        """None switches a hook off, whoever's it is; mmengine takes it for its own only."""
        mine = ('validation_images', 'hparams')
        super().register_default_hooks({name: hook for name, hook in (hooks or {}).items()
                                        if hook is not None or name not in mine})

    def build_strategy(self, *args, **kwargs):
        strategy = super().build_strategy(*args, **kwargs)
        quieten(strategy.logger)
        for name, section in _OF_STRATEGY.items():
            setattr(strategy, name, _guarded(section, getattr(strategy, name)))
        return strategy

    def load_or_resume(self) -> None:
        with setting(f'--resume {self._load_from}' if self._resume else 'load_from',
                     'give a checkpoint of this very config, or leave it out'):
            super().load_or_resume()
