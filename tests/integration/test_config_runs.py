"""One config, every way to run it: tools/train.py, the registered runner (as xtuner train builds it), plain
mmengine."""
import json
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner

from sa2va_dpo.commands.train import main as train_main
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.engine.strategy import fit_to_machine
from sa2va_dpo.models.checkpoint import read_trained_tensors

pytestmark = pytest.mark.integration

# A child in the new way: facts by their names, no place of theirs.
SHORT = '''
_base_ = [{base!r}]
checkpoint = {checkpoint!r}
data_root = {data_root!r}
work_dir = {work_dir!r}
score_size = 64
batch_size = 2
max_iters = 2
log_interval = 1
beta = 0.5
model = dict(trainable=dict(llm=dict(r=4)))
train_cfg = dict(val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
param_scheduler = []
cache = None
'''


@pytest.fixture()
def short_config(repo_root, micro_checkpoint, pair_root, tmp_path):
    def write(name='short.py', end='', work_dir='run'):
        path = tmp_path / name
        path.write_text(SHORT.format(base=str(repo_root / 'projects/sa2va/configs/sa2va_dpo_vessel_tiny.py'),
                                     checkpoint=str(micro_checkpoint), data_root=str(pair_root),
                                     work_dir=str(tmp_path / work_dir)) + end)
        return str(path)
    return write


def tensors(work_dir):
    return read_trained_tensors(work_dir / 'iter_2.pth')


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        # Two runs differ by rounding (tests/integration/test_training.py).
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=2e-3)


COMPLETE = '\nfrom sa2va_dpo.engine.config import complete\ncomplete(_base_, globals())\n'


def test_every_way_to_run_a_config_is_the_same_run(short_config, tmp_path):
    path = short_config()
    assert train_main([path]) == 0
    expected = tensors(tmp_path / 'run')
    saved = Config.fromfile(tmp_path / 'run' / 'config.py')
    assert saved.model.preference.beta == saved.beta == 0.5 and saved.model.score_size == 64

    # As xtuner train does it.
    cfg = Config.fromfile(path)
    cfg.work_dir, cfg.launcher = str(tmp_path / 'registered'), 'none'
    RUNNERS.build(cfg).train()
    assert_same(tensors(tmp_path / 'registered'), expected)

    # Plain mmengine: a file that does not end with complete(...) is refused, one that does is the same run.
    cfg = Config.fromfile(path)
    cfg.work_dir = str(tmp_path / 'refused')
    fit_to_machine(cfg)
    with pytest.raises(InputError, match=r'checkpoint=.*complete\(_base_'):
        FlexibleRunner.from_cfg(cfg).train()
    cfg = Config.fromfile(short_config('whole.py', COMPLETE))
    cfg.work_dir = str(tmp_path / 'plain')
    fit_to_machine(cfg)
    FlexibleRunner.from_cfg(cfg).train()
    assert_same(tensors(tmp_path / 'plain'), expected)


def test_without_validation_images_training_runs_and_says_so(short_config, pair_root, tmp_path):
    root = tmp_path / 'pairs'
    shutil.copytree(pair_root, root)
    (root / 'val_annotations.json').unlink()
    assert train_main([short_config(), '--data-root', str(root)]) == 0
    work_dir = tmp_path / 'run'
    [log] = work_dir.glob('*/*.log')
    assert log.read_text().count('so this run is not validated') == 1
    assert (work_dir / 'iter_2.pth').is_file() and not list(work_dir.glob('best_*'))
    assert Config.fromfile(work_dir / 'config.py').val_dataloader is None


def test_automatic_intervals_on_the_real_runner(short_config, tmp_path):
    train_main([short_config(), '--cfg-options', 'max_iters=6', 'train_cfg.val_interval=auto',
                'default_hooks.checkpoint.interval=auto'])
    history = json.loads((tmp_path / 'run' / 'val_history.json').read_text())
    assert [entry['iter'] for entry in history] == [0, 1, 2, 3, 4, 5, 6]
    assert {path.name for path in (tmp_path / 'run').glob('iter_*.pth')} == {f'iter_{step}.pth' for step in range(1, 7)}


def test_what_nothing_reads_is_one_line(cli, short_config):
    run = cli('tools/train.py', short_config(), '--cfg-options', 'bata=0.2', code=2)
    assert 'nothing reads bata: did you mean beta?' in run.stderr and 'Traceback' not in run.stderr
