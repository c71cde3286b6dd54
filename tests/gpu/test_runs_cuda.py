"""Whole runs on GPUs with the bundled checkpoint: bf16 caches, rounds, 4-bit weights, SIGTERM and resume, two GPUs."""
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.full_size import CONFIG, write_predictions
from sa2va_dpo.common.bundled import bundled_checkpoint
from sa2va_dpo.drawn import write_dataset

pytestmark = pytest.mark.gpu
TINY_CHECKPOINT = Path(bundled_checkpoint()).absolute()
STEPS = 6


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('drawn')
    write_dataset(root, 'fundus', seed=0, n=10, size=256, workers=1)
    write_predictions(root / 'masks', root / 'predictions')
    return root


@pytest.fixture(scope='module')
def pairs(folders, repo_root):
    subprocess.run([sys.executable, 'scripts/generate_dpo_dataset.py', '--mode', 'from_predictions', '--images_dir',
                    folders / 'predictions', '--gt_dir', folders / 'masks', '--source_images_dir', folders / 'images',
                    '--output_dir', folders / 'pairs'], cwd=repo_root, check=True, capture_output=True)
    return folders / 'pairs'


@pytest.fixture()
def train(pairs, repo_root):
    """The full config (DeepSpeed ZeRO-2, bf16, offload) on the bundled checkpoint."""

    def run(work_dir, *options, config=CONFIG, more=(), processes=1, stop=False):
        launcher = (['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
                    if processes > 1 else [])
        command = [sys.executable, *launcher, 'tools/train.py', config, '--checkpoint', TINY_CHECKPOINT, '--data-root',
                   pairs, '--work-dir', work_dir, *(['--launcher', 'pytorch'] if processes > 1 else []), *more,
                   '--cfg-options', f'max_iters={STEPS}', 'log_interval=1', 'lr=1e-4', *options]
        process = subprocess.Popen(list(map(str, command)), cwd=repo_root, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, env={**os.environ, 'OMP_NUM_THREADS': '2'})
        while stop and process.poll() is None and not (work_dir / 'last_checkpoint').is_file():
            time.sleep(0.02)
        if stop:
            process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=300)
        return process.returncode, text

    return run


def history(work_dir):
    return json.loads((work_dir / 'val_history.json').read_text())


def assert_finished(work_dir, code, text):
    assert code == 0, text[-4000:]
    assert (work_dir / f'iter_{STEPS}.pth').exists() and history(work_dir)[-1]['iter'] == STEPS


def test_bf16_caches_train_what_no_cache_trains(train, tmp_path):
    # With the language model frozen every kind of cache is in use but that of SAM2.
    options = ['model.trainable.llm=frozen']
    assert_finished(tmp_path / 'plain', *train(tmp_path / 'plain', *options))
    code, text = train(tmp_path / 'cached', *options, f'cache.dir={tmp_path / "cache"}',
                       'cache.items=[seg_states,reference_low_res]')
    assert_finished(tmp_path / 'cached', code, text)
    [log] = (tmp_path / 'cached').glob('*/*.log')
    assert 'cache: seg_states, reference_low_res of' in log.read_text()
    one, other = (history(tmp_path / name) for name in ('plain', 'cached'))
    assert one[0]['dice'] == pytest.approx(other[0]['dice'], abs=0.01)
    assert one[-1]['dice'] == pytest.approx(other[-1]['dice'], abs=0.02)


def test_rounds(train, tmp_path):
    write_dataset(tmp_path, 'fundus', seed=1, n=3, size=256, workers=1)
    config = tmp_path / 'rounds.py'
    config.write_text(f'''
_base_ = [{os.path.abspath(CONFIG)!r}]
rounds = dict(count=2, judge='iou', num_samples=4, unlabelled={str(tmp_path / 'images')!r},
              unlabelled_gt={str(tmp_path / 'masks')!r}, min_iou_gap=0.0, check_judge=False, guard=None)
custom_hooks = [dict(type='PairValidationHook'), dict(type='StartValidationHook')]
''')
    code, text = train(tmp_path / 'run', config=config)
    assert_finished(tmp_path / 'run', code, text)
    rounds = json.loads((tmp_path / 'run/rounds.json').read_text())['rounds']
    assert len(rounds) == 2


@pytest.mark.parametrize('kind', ['nf4', 'int8'])
def test_a_quantised_run_is_tested_and_exported(train, tmp_path, repo_root, kind):
    pytest.importorskip('bitsandbytes')
    work = tmp_path / 'run'
    assert_finished(work, *train(work, f'model.llm_quantisation={kind}'))
    for command in (['tools/test.py', work / 'config.py', work / f'iter_{STEPS}.pth', '--work-dir', tmp_path / 'test'],
                    ['tools/export_hf.py', work / 'config.py', work / f'iter_{STEPS}.pth', tmp_path / 'out']):
        subprocess.run([sys.executable, *map(str, command)], cwd=repo_root, check=True)
    before, after = (load_file(path / 'model.safetensors') for path in (TINY_CHECKPOINT, tmp_path / 'out'))
    untouched = [key for key in before if key.startswith(('vision_model.', 'mlp1.')) or key.endswith('norm.weight')]
    assert untouched and all(torch.equal(before[key], after[key]) for key in untouched)
    assert not torch.equal(before['text_hidden_fcs.0.weight'], after['text_hidden_fcs.0.weight'])


@pytest.mark.parametrize('processes', [1, 2])
def test_sigterm_and_resume(train, tmp_path, processes):
    if torch.cuda.device_count() < processes:
        pytest.skip(f'{processes} GPUs are needed')
    work = tmp_path / 'run'
    code, text = train(work, processes=processes, stop=True)
    assert code != 0, text[-4000:]
    if processes == 1:  # torchrun ends with a code and a traceback of its own
        assert code == 143 and 'Traceback' not in text, text[-4000:]
    assert not (work / f'iter_{STEPS}.pth').exists(), 'it ended before the signal came'
    assert_finished(work, *train(work, processes=processes, more=['--resume']))
    assert [entry['iter'] for entry in history(work)] == list(range(STEPS + 1))


def test_without_bitsandbytes_the_extra_is_named(train, tmp_path):
    if find_spec('bitsandbytes'):
        pytest.skip('bitsandbytes is installed here')
    code, text = train(tmp_path / 'run', 'model.llm_quantisation=nf4')
    assert code == 2 and "pip install 'sa2va-dpo[quantised]'" in text.splitlines()[-1]
