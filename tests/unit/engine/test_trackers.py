"""Weights & Biases, MLflow and SwanLab by one setting, against stand-ins that write down what they are told."""
import json
import sys
import types

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import VISBACKENDS

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.engine import trackers
from sa2va_dpo.engine.run_record import FREE
from sa2va_dpo.engine.settings import known_names
from sa2va_dpo.engine.trackers import TRACKERS, check_trackers, install_trackers, trackers_of

CFG = Config(dict(model=dict(type='Sa2VADPOModel', preference=dict(beta=0.1)), lr=1e-4, seed=3, data_root='data',
                  work_dir='work_dirs/first'))


class Calls(list):
    def record(self, name, result=None):
        def call(*args, **kwargs):
            self.append((name, args, kwargs))
            return result
        return call

    def named(self, name):
        return [(args, kwargs) for found, args, kwargs in self if found == name]


@pytest.fixture
def stand_in(monkeypatch):
    """package -> the calls that it got."""
    def make(package, broken=()):
        calls = Calls()

        class Module(types.ModuleType):
            def __getattr__(self, name):
                if name.startswith('__'):
                    raise AttributeError(name)
                if name in broken:
                    def fail(*args, **kwargs):
                        calls.append((name, args, kwargs))
                        raise RuntimeError(f'{name}: the server is gone')
                    return fail
                if name in ('init', 'start_run', 'config'):
                    # The session of wandb, the settings of swanlab: the same recorder.
                    return calls.record(name, self) if name != 'config' else types.SimpleNamespace(
                        update=calls.record('config.update'))
                return calls.record(name, None if name == 'get_experiment_by_name' else (name,))

        monkeypatch.setitem(sys.modules, package, Module(package))
        return calls
    return make


def backend_of(name, folder, **settings):
    cfg = Config(dict(trackers={name: settings}, work_dir='work_dirs/first', visualizer=dict(
        type='Visualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])))
    install_trackers(cfg)
    built = [dict(backend) for backend in cfg.visualizer.vis_backends]
    assert [backend['type'] for backend in built[:2]] == ['LocalVisBackend', 'TensorboardVisBackend']
    assert built[2].pop('name') == name
    return VISBACKENDS.build(dict(built[2], save_dir=str(folder / 'vis_data')))


def use(backend):
    backend.add_config(CFG)
    backend.add_scalars({'train/loss': 0.5, 'accuracy': np.float32(0.75)}, step=10, file_path='x.json')
    backend.add_scalar('val/alarm', 1, 20)
    backend.add_image('val/images/a', np.zeros((4, 4, 3), np.uint8), 20)
    backend.close()
    backend.close()


def test_wandb_has_the_iteration_as_its_axis(stand_in, tmp_path, monkeypatch):
    monkeypatch.delenv('WANDB_PROJECT', raising=False)
    calls = stand_in('wandb')
    use(backend_of('wandb', tmp_path, tags=['x']))
    [(_, init)] = calls.named('init')
    assert init == dict(dir=str(tmp_path / 'vis_data'), name='first', project='sa2va_dpo', tags=['x'])
    assert (('*',), dict(step_metric='iter')) in calls.named('define_metric')
    [((config,), _)] = calls.named('config.update')
    assert config['lr'] == 1e-4 and config['model']['preference']['beta'] == 0.1
    logged = [args[0] for args, _ in calls.named('log')]
    assert logged[:2] == [{'train/loss': 0.5, 'accuracy': 0.75, 'iter': 10}, {'val/alarm': 1.0, 'iter': 20}]
    assert logged[2]['iter'] == 20 and 'val/images/a' in logged[2]
    # mmengine's backend uploads every Python file of the current folder.
    assert not calls.named('log_code') and len(calls.named('finish')) == 1


def test_mlflow_keeps_its_store_beside_the_logs(stand_in, tmp_path, monkeypatch):
    for name in ('MLFLOW_TRACKING_URI', 'MLFLOW_EXPERIMENT_NAME'):
        monkeypatch.delenv(name, raising=False)
    calls = stand_in('mlflow')
    use(backend_of('mlflow', tmp_path))
    assert calls.named('set_tracking_uri') == [((f'sqlite:///{tmp_path}/vis_data/mlflow.db',), {})]
    [(_, made)] = calls.named('create_experiment')
    assert made == dict(artifact_location=(tmp_path / 'vis_data/mlflow').as_uri())
    assert calls.named('start_run') == [((), dict(run_name='first', tags=None))]
    [((parameters,), _)] = calls.named('log_params')
    assert parameters['lr'] == '0.0001' and parameters['seed'] == '3' and parameters['model.type'] == 'Sa2VADPOModel'
    assert calls.named('log_metrics') == [(({'train/loss': 0.5, 'accuracy': 0.75},), dict(step=10)),
                                          (({'val/alarm': 1.0},), dict(step=20))]
    [(_, image)] = calls.named('log_image')
    assert image == dict(key='val/images/a', step=20)
    assert len(calls.named('end_run')) == 1


@pytest.mark.parametrize('how', ['setting', 'environment'])
def test_mlflow_takes_a_server(stand_in, tmp_path, monkeypatch, how):
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://environment')
    calls = stand_in('mlflow')
    settings = dict(tracking_uri='http://setting', experiment='vessels', run='mine') if how == 'setting' else {}
    backend_of('mlflow', tmp_path, **settings).add_scalar('x', 1.0)
    assert calls.named('set_tracking_uri') == [((f'http://{how}',), {})] and not calls.named('create_experiment')
    assert calls.named('set_experiment') == [(('vessels' if how == 'setting' else 'sa2va_dpo',), {})]


def test_mlflow_gets_many_parameters_in_batches(stand_in, tmp_path):
    calls = stand_in('mlflow')
    trainable = {f'part_{index}': 'x' * 600 for index in range(250)}
    backend_of('mlflow', tmp_path).add_config(Config(dict(model=dict(type='M', trainable=trainable))))
    sizes = [len(args[0]) for args, _ in calls.named('log_params')]
    assert sizes == [100, 100, 51] and max(len(value) for args, _ in calls.named('log_params')
                                           for value in args[0].values()) == 500


def test_swanlab(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv('SWANLAB_MODE', 'offline')
    calls = stand_in('swanlab')
    use(backend_of('swanlab', tmp_path, project='vessels'))
    assert calls.named('init') == [((), dict(project='vessels', experiment_name='first',
                                             logdir=str(tmp_path / 'vis_data'), mode='offline'))]
    assert [kwargs for _, kwargs in calls.named('log')] == [dict(step=10), dict(step=20), dict(step=20)]
    assert len(calls.named('config.update')) == 1 and len(calls.named('finish')) == 1


@pytest.mark.parametrize('name, broken', [('wandb', 'init'), ('mlflow', 'start_run'), ('swanlab', 'init')])
def test_a_tracker_that_cannot_begin_is_one_line(stand_in, tmp_path, name, broken):
    stand_in(name, broken=[broken])
    with pytest.raises(InputError, match=f'trackers: {name} cannot begin .*the server is gone.*, log in, or '):
        backend_of(name, tmp_path).add_config(CFG)


def test_an_unknown_setting_of_mlflow_is_one_line(stand_in, tmp_path):
    stand_in('mlflow')
    with pytest.raises(InputError, match='uri: there are tracking_uri, experiment, run, tags'):
        backend_of('mlflow', tmp_path, uri='x').add_config(CFG)


@pytest.mark.parametrize('name, broken', [('wandb', 'log'), ('mlflow', 'log_metrics'), ('swanlab', 'log')])
def test_a_tracker_that_fails_later_is_given_up_and_the_run_goes_on(stand_in, tmp_path, name, broken, monkeypatch):
    calls, said = stand_in(name, broken=[broken]), []
    logger = types.SimpleNamespace(warning=said.append, log=lambda *message: None)
    monkeypatch.setattr(trackers.MMLogger, 'get_current_instance', lambda: logger)
    use(backend_of(name, tmp_path))
    assert len(calls.named(broken)) == 1, 'it is not asked again: a server that hangs would cost every step'
    assert len(said) == 1 and f'trackers: {name} failed' in said[0] and str(tmp_path) in said[0]


@pytest.mark.parametrize('name', TRACKERS)
@pytest.mark.parametrize('spelled', ['by name', 'by hand'])
def test_what_is_not_installed_is_one_line_with_the_remedy(monkeypatch, name, spelled):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    hand = {package: kind for kind, package in trackers._PACKAGES.items()}[name]
    cfg = dict(trackers=name) if spelled == 'by name' else dict(visualizer=dict(vis_backends=[dict(type=hand)]))

    with pytest.raises(InputError, match=rf"needs the package {name}, which is not installed: "
                                         r"pip install 'sa2va-dpo\[trackers\]'"):
        check_trackers(cfg)


def test_a_broken_package_is_one_line(monkeypatch, tmp_path):
    (tmp_path / 'wandb.py').write_text("raise ImportError('cannot import name x from y')")
    monkeypatch.delitem(sys.modules, 'wandb', raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match='trackers: cannot import name x from y: install wandb anew'):
        check_trackers(dict(trackers='wandb'))


@pytest.mark.parametrize('value, expected', [
    (None, {}), ('', {}), ([], {}), ('wandb', dict(wandb={})), (['wandb', 'mlflow'], dict(wandb={}, mlflow={})),
    (dict(mlflow=None, wandb=dict(project='x')), dict(mlflow={}, wandb=dict(project='x')))])
def test_spellings(value, expected):
    assert trackers_of(value) == expected


@pytest.mark.parametrize('value, words', [
    ('WandB', "no such tracker: did you mean wandb?"), ('tensorboard', 'there are wandb, mlflow, swanlab'),
    (7, 'must be one of'), ([1], 'must be one of'), (dict(wandb='x'), "trackers.wandb: 'x' must be a dict")])
def test_misspellings(value, words):
    with pytest.raises(InputError) as error:
        trackers_of(value)
    assert words in str(error.value)


@pytest.mark.parametrize('backends', [3, 'x', [None], dict(type='LocalVisBackend'), None])
def test_backends_that_are_no_list_are_left_to_mmengine(backends, stand_in):
    stand_in('wandb')
    cfg = Config(dict(visualizer=dict(type='Visualizer', vis_backends=backends), trackers='wandb'))
    check_trackers(cfg)
    install_trackers(cfg)
    kept = backends if isinstance(backends, list) else [] if backends is None else [backends]
    assert list(cfg.visualizer.vis_backends)[:-1] == kept


def test_nothing_is_added_where_nothing_is_named():
    cfg = Config(dict(visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])))
    before = json.dumps(cfg.to_dict())
    install_trackers(cfg)
    check_trackers(cfg)
    assert json.dumps(cfg.to_dict()) == before


def test_a_run_may_go_on_with_another_tracker():
    assert 'config.trackers' in FREE and set(known_names(('trackers',), {})) == set(TRACKERS)


def test_no_tracker_is_in_a_lock_file(repo_root):
    for path in (repo_root / 'requirements').glob('*.lock'):
        names = {line.split('==')[0].strip().lower() for line in path.read_text(encoding='utf-8').splitlines()}
        assert names and not names & {*TRACKERS, 'mlflow-skinny'}, path


