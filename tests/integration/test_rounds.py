"""Rounds on the real runner: mined anew, killed and resumed in every phase, shared by processes, taken back."""
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sa2va_dpo.commands.train import main as train_main
from sa2va_dpo.common.errors import WAITING, InputError
from sa2va_dpo.models.checkpoint import read_trained_tensors

pytestmark = pytest.mark.integration

FAULTS = '''
"""Kills the process (SIGKILL) where the environment says: <phase>@<iteration>, mined:<images>@<iteration>."""
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from sa2va_dpo.preferences.output import Journal

WHERE, _, WHEN = os.environ.get('KILL_AT', '').partition('@')

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

@HOOKS.register_module()
class KillHook(Hook):
    priority = 'LOWEST'

    def round_phase(self, runner, name):
        if name == WHERE and runner.iter == int(WHEN):
            kill()

    def between_steps(self, runner):
        if WHERE.startswith('mined:') and runner.iter == int(WHEN):
            kill()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if WHERE == 'step' and batch_idx + 1 == int(WHEN):
            kill()
        KillHook.iteration = batch_idx + 1

KillHook.iteration = 0
appended, append = [], Journal.append

def append_and_die(self, entry):
    append(self, entry)
    if WHERE.startswith('mined:') and KillHook.iteration == int(WHEN):
        appended.append(entry['image'])
        if len(appended) == int(WHERE.split(':')[1]):
            kill()

Journal.append = append_and_die
'''


@pytest.fixture(scope='module')
def unlabelled(tmp_path_factory, make_folders):
    """Five images without masks to the run; masks beside them for those who pick in an expert's place."""
    return make_folders(tmp_path_factory.mktemp('unlabelled'), range(20, 25))


@pytest.fixture(scope='module')
def rounds_config(tmp_path_factory, run_config, pair_root, unlabelled):
    """Two rounds of three steps; the pair set's six labelled images and five unlabelled ones."""
    root = tmp_path_factory.mktemp('rounds')
    shutil.copytree(pair_root, root / 'data')
    pairs = json.loads((root / 'data/dpo_annotations.json').read_text())
    for pair in pairs:
        pair['gt_mask'] = f'gt/{Path(pair["image"]).name}'
    (root / 'data/dpo_annotations.json').write_text(json.dumps(pairs))
    (root / 'kill_hook.py').write_text(FAULTS)
    path = root / 'micro_rounds.py'
    path.write_text(f'''
_base_ = [{str(run_config)!r}]
custom_imports = dict(imports=['sa2va_dpo.plugins', 'kill_hook'])
train_dataloader = dict(dataset=dict(data_root={str(root / 'data')!r}))
model = dict(trainable=dict(llm=dict(dropout=0.1)))
train_cfg = dict(max_iters=6, val_interval=100)
default_hooks = dict(checkpoint=dict(interval=2))
custom_hooks = [dict(type='PairValidationHook'), dict(type='StartValidationHook'), dict(type='KillHook')]
rounds = dict(count=2, judge='iou', unlabelled={str(unlabelled[0])!r}, unlabelled_gt={str(unlabelled[1])!r}, num_samples=4,
              min_iou_gap=0.0)
cache = None
''')
    return path


@pytest.fixture()
def train(rounds_config, repo_root):
    """Train in a process of its own, which may be killed."""

    def run(work_dir, *more, options=(), kill_at='', code=0, processes=1):
        launcher = (['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}'] if processes > 1 else [])
        command = [sys.executable, *launcher, 'tools/train.py', str(rounds_config), '--work-dir', str(work_dir), *more,
                   *(['--launcher', 'pytorch'] if processes > 1 else []), *(['--cfg-options', *options] if options else [])]
        done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=600, env={
            **os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'KILL_AT': kill_at,
            'PYTHONPATH': os.pathsep.join([str(rounds_config.parent), os.environ.get('PYTHONPATH', '')])})
        if code is not None:
            assert done.returncode == code, f'{done.stdout[-3000:]}\n{done.stderr[-5000:]}'
        return done

    return run


def rounds_of(work_dir) -> list[dict]:
    return json.loads((work_dir / 'rounds.json').read_text())['rounds']


def without_times(rounds: list[dict]) -> list[dict]:
    return [{name: value for name, value in record.items() if name != 'seconds'} for record in rounds]


def assert_same_end(one, other):
    a, b = read_trained_tensors(one / 'iter_6.pth'), read_trained_tensors(other / 'iter_6.pth')
    assert a.keys() == b.keys() and [name for name in a if not torch.equal(a[name], b[name])] == []
    assert without_times(rounds_of(one)) == without_times(rounds_of(other))
    histories = [[{k: v for k, v in entry.items() if k != 'sha256'} for entry in json.loads((d / 'val_history.json').read_text())]
                 for d in (one, other)]
    assert histories[0] == histories[1]


@pytest.fixture(scope='module')
def whole(rounds_config, repo_root, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('whole')
    subprocess.run([sys.executable, 'tools/train.py', str(rounds_config), '--work-dir', str(work_dir)], cwd=repo_root, check=True,
                   capture_output=True, env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH':
                                             os.pathsep.join([str(rounds_config.parent), os.environ.get('PYTHONPATH', '')])})
    return work_dir


def test_two_rounds_leave_what_they_were(whole):
    first, second = rounds_of(whole)
    assert (first['iteration'], second['iteration']) == (0, 3) and first['policy'] != second['policy']
    for record in (first, second):
        assert record['decision'] in ('kept', 'taken back') and record['metric'] is not None
        assert record['labelled']['images'] == 6 and record['labelled']['usable_share'] == 1, 'every mask is trained on'
        assert record['unlabelled']['images'] == 5 and 0 < record['unlabelled']['usable_share'] <= 1
        assert record['unlabelled']['best_iou'] >= record['unlabelled']['greedy_iou'] and record['unlabelled']['diversity'] > 0
        assert record['labelled']['chosen_iou'] == 1
        assert {'Consensus', 'PredictedIoU', 'Agreement', 'ExpectedIoU'} == set(record['judge_agreement'])
        assert record['seconds'] > 0
    assert (whole / 'iter_3.pth').is_file() and (whole / 'iter_6.pth').is_file()
    assert not list((whole / 'rounds').glob('start_*')), 'states that nothing needs any more are gone'
    for record in (first, second):
        for root in record['data'].values():
            assert (whole / root / 'dpo_annotations.json').is_file()
    [log] = whole.glob('*/*.log')
    assert 'round 1: unlabelled: ' in log.read_text() and 'mined in' in log.read_text()


PHASES = ('step@2', 'labelled mined@0', 'mined:3@0', 'committed@0', 'step@3', 'decided@3', 'saved@3', 'mined:2@3', 'mined:9@3',
          'mined@3', 'committed@3', 'step@5', 'decided@6', 'saved@6')


@pytest.mark.parametrize('kill_at', PHASES)
def test_a_killed_run_ends_as_the_whole_one(train, whole, tmp_path, kill_at):
    train(tmp_path / 'run', kill_at=kill_at, code=-signal.SIGKILL)
    train(tmp_path / 'run', '--resume')
    assert_same_end(tmp_path / 'run', whole)
