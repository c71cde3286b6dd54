"""Trackers beside TensorBoard, by one setting: ``trackers='wandb'``, ``['wandb', 'mlflow']``, or with settings of their
own ``dict(mlflow=dict(tracking_uri='http://...'))``.

mmengine has backends for two of them, which do not work with pictures and steps: Weights & Biases' counts every call
as a step and uploads the Python files of the current folder, MLflow's wants names with a file's ending and a store that
MLflow 3 refuses. These here need no network where the tracker does not.

A tracker that cannot begin ends the run before it starts, in one line. One that fails later is given up with a warning:
the figures are in TensorBoard and in ``vis_data``, and training goes on.
"""
from __future__ import annotations

import difflib
import importlib
import os
from pathlib import Path
from typing import Any, Callable, Mapping

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import VISBACKENDS
from mmengine.visualization.vis_backend import BaseVisBackend, force_init_env

from sa2va_dpo.common.errors import InputError, one_line, setting
from sa2va_dpo.common.optional import extra

from .recipe import recipe
from .run_record import plain

PROJECT = 'sa2va_dpo'
# Backends of other packages that a config may name by hand -> the package.
_PACKAGES = dict(WandbVisBackend='wandb', MLflowVisBackend='mlflow', SwanlabVisBackend='swanlab')
_MLFLOW_BATCH = 100  # parameters that a store takes at once


class Tracker(BaseVisBackend):
    """What the three have in common.

    Args:
        save_dir: of the run's logs; what a tracker keeps on this machine goes there.
        run: name of the run, where ``settings`` have none.
        settings: see the classes below.
    """

    package = ''
    offline = ''  # how to do without network, for the message

    def __init__(self, save_dir: str, run: str = '', settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(save_dir)
        self.run, self.settings = run, dict(settings or {})
        self.module: Any = None
        self.alive = True

    def begin(self) -> None:
        """Open the run; whatever it raises is said in one line."""
        raise NotImplementedError

    def end(self) -> None:
        """Close it."""
        raise NotImplementedError

    def log_config(self, config: Config) -> None:
        raise NotImplementedError

    def log_image(self, name: str, image, step: int) -> None:
        raise NotImplementedError

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        raise NotImplementedError

    def _init_env(self) -> None:
        os.makedirs(self._save_dir, exist_ok=True)
        self.module = importlib.import_module(self.package)
        try:
            self.begin()
        except Exception as error:  # whatever a tracker raises is about it, its settings or the network
            raise InputError(f'trackers: {self.package} cannot begin ({one_line(error)}): correct trackers.'
                             f'{self.package}, log in, or {self.offline}') from error

    @property
    @force_init_env
    def experiment(self) -> Any:
        """The package."""
        return self.module

    @force_init_env
    def add_config(self, config: Config, **kwargs) -> None:
        self._report(lambda: self.log_config(config))

    @force_init_env
    def add_image(self, name: str, image, step: int = 0, **kwargs) -> None:
        self._report(lambda: self.log_image(name, image, int(step)))

    @force_init_env
    def add_scalar(self, name: str, value, step: int = 0, **kwargs) -> None:
        self._report(lambda: self.log_scalars({name: float(value)}, int(step)))

    @force_init_env
    def add_scalars(self, scalar_dict: dict, step: int = 0, file_path: str | None = None, **kwargs) -> None:
        values = {name: float(value) for name, value in scalar_dict.items() if name != 'step'}
        self._report(lambda: self.log_scalars(values, int(step)))

    def close(self) -> None:
        if self.module is not None:
            self._report(self.end)
            self.alive = False

    def _report(self, call: Callable[[], None]) -> None:
        if not self.alive:
            return
        try:
            call()
        except Exception as error:  # a server that has gone must not end a training
            self.alive = False
            MMLogger.get_current_instance().warning(
                f'trackers: {self.package} failed ({one_line(error)}): from here on this run is not reported to it; '
                f'everything is in {self._save_dir}')


@VISBACKENDS.register_module()
class WandbTracker(Tracker):
    """Weights & Biases; ``settings`` are those of ``wandb.init``. Charts have the iteration as their axis."""

    package, offline = 'wandb', 'set WANDB_MODE=offline'

    def begin(self) -> None:
        given = dict(dir=self._save_dir, name=self.run or None, project=os.environ.get('WANDB_PROJECT') or PROJECT)
        self.session = self.module.init(**{**given, **self.settings})
        # wandb's own steps count calls.
        self.session.define_metric('iter', hidden=True)
        self.session.define_metric('*', step_metric='iter')

    def log_config(self, config: Config) -> None:
        self.session.config.update(plain(config))

    def log_image(self, name: str, image, step: int) -> None:
        self.session.log({name: self.module.Image(image), 'iter': step})

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        self.session.log({**values, 'iter': step})

    def end(self) -> None:
        self.session.finish()


@VISBACKENDS.register_module()
class MLflowTracker(Tracker):
    """MLflow; ``settings``: ``tracking_uri`` (default: ``MLFLOW_TRACKING_URI``, else a file ``mlflow.db`` beside the
    logs), ``experiment``, ``run`` and ``tags``."""

    package, offline = 'mlflow', 'leave tracking_uri and MLFLOW_TRACKING_URI out'

    def begin(self) -> None:
        unknown = set(self.settings) - {'tracking_uri', 'experiment', 'run', 'tags'}
        if unknown:
            raise ValueError(f'{sorted(unknown)[0]}: there are tracking_uri, experiment, run, tags')
        folder = Path(self._save_dir).absolute()
        own = f'sqlite:///{folder / "mlflow.db"}'
        uri = self.settings.get('tracking_uri') or os.environ.get('MLFLOW_TRACKING_URI') or own
        self.module.set_tracking_uri(uri)
        name = self.settings.get('experiment') or os.environ.get('MLFLOW_EXPERIMENT_NAME') or PROJECT
        if uri == own and self.module.get_experiment_by_name(name) is None:
            # Beside the file; MLflow would put pictures below the current folder.
            self.module.create_experiment(name, artifact_location=(folder / 'mlflow').as_uri())
        self.module.set_experiment(name)
        self.module.start_run(run_name=self.settings.get('run') or self.run or None, tags=self.settings.get('tags'))

    def log_config(self, config: Config) -> None:
        # A whole config has more parameters, and longer ones, than a store takes; it goes there as a file.
        parameters = [(name, value[:500]) for name, value in recipe(plain(config))]
        for at in range(0, len(parameters), _MLFLOW_BATCH):
            self.module.log_params(dict(parameters[at:at + _MLFLOW_BATCH]))
        self.module.log_text(config.pretty_text, 'config.py')

    def log_image(self, name: str, image, step: int) -> None:
        self.module.log_image(image, key=name, step=step)

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        self.module.log_metrics(dict(values), step=step)

    def end(self) -> None:
        self.module.end_run()


@VISBACKENDS.register_module()
class SwanlabTracker(Tracker):
    """SwanLab; ``settings`` are those of ``swanlab.init``."""

    package, offline = 'swanlab', 'set SWANLAB_MODE=offline'

    def begin(self) -> None:
        given: dict[str, Any] = dict(project=PROJECT, experiment_name=self.run or None, logdir=self._save_dir)
        mode = os.environ.get('SWANLAB_MODE')
        if mode:
            given['mode'] = mode
        self.module.init(**{**given, **self.settings})

    def log_config(self, config: Config) -> None:
        self.module.config.update(plain(config))

    def log_image(self, name: str, image, step: int) -> None:
        self.module.log({name: self.module.Image(image)}, step=step)

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        self.module.log(dict(values), step=step)

    def end(self) -> None:
        self.module.finish()


TRACKERS: dict[str, type[Tracker]] = {kind.package: kind for kind in (WandbTracker, MLflowTracker, SwanlabTracker)}


def trackers_of(value: Any) -> dict[str, dict]:
    """Name -> settings of what a config's ``trackers`` names.

    Raises:
        InputError: no such tracker, or something else than names and their settings.
    """
    if value is None or value == '':
        return {}
    if isinstance(value, str):
        value = [value]
    named = dict(value) if isinstance(value, Mapping) else dict.fromkeys(value) if (
        isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)) else None
    if named is None:
        raise InputError(f'trackers: {value!r} must be one of {", ".join(TRACKERS)}, a list of them, or a dict of them '
                         'with their settings')
    for name, settings in named.items():
        if name not in TRACKERS:
            near = difflib.get_close_matches(name, TRACKERS, n=1, cutoff=0.4)
            hint = f'did you mean {near[0]}?' if near else f'there are {", ".join(TRACKERS)}'
            raise InputError(f'trackers: {name!r}: no such tracker: {hint}')
        if not isinstance(settings, (Mapping, type(None))):
            raise InputError(f'trackers.{name}: {settings!r} must be a dict of its settings, or None')
    return {name: dict(settings or {}) for name, settings in named.items()}


def check_trackers(cfg: Mapping[str, Any]) -> None:
    """See that every tracker that a config names can be imported, before anything else is read.

    Raises:
        InputError: a tracker that there is not, or whose package is not installed.
    """
    wanted = {name: f'trackers={name}' for name in trackers_of(cfg.get('trackers'))}
    for backend in _backends(cfg.get('visualizer')):
        kind = backend.get('type') if isinstance(backend, Mapping) else None
        if kind in _PACKAGES:
            wanted[_PACKAGES[kind]] = f'visualizer.vis_backends type={kind}'
    for package, purpose in wanted.items():
        with setting('trackers', f'install {package} anew, or leave it out'), extra('trackers', purpose):
            importlib.import_module(package)
            if purpose.endswith('SwanlabVisBackend'):
                importlib.import_module('swanlab.integration.mmengine')  # registers it


def _backends(visualizer: Any) -> list:
    """What a ``visualizer`` reports to; whether it makes sense is for mmengine to say."""
    found = visualizer.get('vis_backends') if isinstance(visualizer, Mapping) else None
    return list(found) if isinstance(found, (list, tuple)) else [] if found is None else [found]


def install_trackers(cfg: Config) -> None:
    """Add the backends of ``cfg.trackers`` to the visualizer's, in place."""
    named = trackers_of(cfg.get('trackers'))
    if not named:
        return
    visualizer = cfg.get('visualizer') or dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    run = Path(cfg.get('work_dir', '')).name
    cfg.visualizer = dict(visualizer, vis_backends=[
        *_backends(visualizer),
        *(dict(type=TRACKERS[name].__name__, name=name, run=run, settings=settings)
          for name, settings in named.items())])
