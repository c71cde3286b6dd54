"""A training that is killed at any file operation, and resumed, ends as one that was never disturbed."""
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from sa2va_dpo.engine.run_folder import select
from tests.integration.kills import Killable

pytestmark = pytest.mark.integration

METRICS = ('dice', 'iou', 'pairs/accuracy')


@pytest.fixture(scope='module')
def train(run_config, repo_root, tmp_path_factory):
    command = Killable('train', repo_root, tmp_path_factory.mktemp('outputs'),
                       ('sa2va_dpo.plugins', 'sa2va_dpo.caching.prepare', 'sa2va_dpo.engine.checkpointing',
                        'sa2va_dpo.engine.guard', 'sa2va_dpo.evaluation.vessel_metric'))

    def run(work_dir, *more, **how):
        return command.run(run_config, '--work-dir', work_dir, *more, **how)

    yield run
    command.close()


@pytest.fixture(scope='module')
def undisturbed(train, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('undisturbed')
    log = work_dir / 'operations'
    train(work_dir, log=log)
    return work_dir, log.read_text().splitlines()


def outcome(work_dir):
    history = json.loads((work_dir / 'val_history.json').read_text())
    chosen = select(work_dir)
    return (
        [(entry['iter'], 'checkpoint' in entry, *(round(entry[name], 4) for name in METRICS)) for entry in history],
        None if chosen.checkpoint is None else chosen.checkpoint.name,
        sorted(p.name for p in work_dir.glob('*.pth')),
        (work_dir / 'last_checkpoint').read_text().rpartition('/')[2],
    )


def test_the_order_of_a_commit(undisturbed):
    names = [line.split(' ', 2)[2] for line in undisturbed[1] if 'after' in line]
    names = [name for name in names if name.endswith(('.pth', 'val_history.json', 'last_checkpoint'))]
    assert names[:5] == [
        'val_history.json',
        'best_dice_iter_2.pth',
        'iter_2.pth',
        'val_history.json',
        'last_checkpoint',
    ]


def test_a_kill_at_any_file_operation_changes_nothing(undisturbed, train, tmp_path):
    whole, operations = undisturbed
    watched = [int(line.split()[0]) for line in operations
               if line.endswith(('.pth', 'val_history.json', 'last_checkpoint', 'owner.json'))]
    assert len(watched) >= 18
    for at in watched if os.environ.get('SA2VA_DPO_LONG_TESTS') else watched[1::4]:
        work_dir = tmp_path / str(at)
        train(work_dir, at=at, code=-signal.SIGKILL)
        train(work_dir, '--resume')
        assert outcome(work_dir) == outcome(whole), operations[at - 1]


def test_a_kill_during_a_validation_repeats_it(undisturbed, train, tmp_path):
    # Three images in batches of two: in the start's validation, in that of step 2 and in that of step 4.
    for at in (2, 4, 6):
        work_dir = tmp_path / str(at)
        train(work_dir, at=at, watch=['validation'], code=-signal.SIGKILL)
        train(work_dir, '--resume')
        assert outcome(work_dir) == outcome(undisturbed[0]), at


def test_a_torn_checkpoint_is_named_and_the_one_before_used(undisturbed, train, tmp_path):
    whole, _ = undisturbed
    work_dir = tmp_path / 'w'
    shutil.copytree(whole, work_dir)
    (work_dir / 'iter_4.pth').write_bytes((work_dir / 'iter_4.pth').read_bytes()[:1000])
    (work_dir / 'last_checkpoint').write_text('')
    text = train(work_dir, '--resume')
    assert 'iter_4.pth: is not whole' in text and outcome(work_dir) == outcome(whole)


def test_a_damaged_best_file_is_written_again(undisturbed, train, tmp_path):
    whole, _ = undisturbed
    work_dir = tmp_path / 'w'
    shutil.copytree(whole, work_dir)
    best = select(work_dir).checkpoint
    best.write_bytes(best.read_bytes()[:1000])
    assert 'written again from' in train(work_dir, '--resume')
    assert select(work_dir).checkpoint == best


def test_a_new_start_does_not_mix_with_what_was_there(undisturbed, train, tmp_path):
    whole, _ = undisturbed
    work_dir = tmp_path / 'w'
    shutil.copytree(whole, work_dir)
    train(work_dir)
    assert outcome(work_dir) == outcome(whole)
    [aside] = work_dir.glob('earlier_*')
    assert {p.name for p in aside.glob('iter_*.pth')} == {'iter_2.pth', 'iter_4.pth'}


def test_two_trainings_in_one_folder(train, tmp_path):
    from sa2va_dpo.common import ownership

    with ownership.lock(tmp_path, 'training'):
        text = train(tmp_path, code=2)
    assert f'is being written by process {os.getpid()} on ' in text
    assert not list(tmp_path.glob('*.pth'))


@pytest.mark.parametrize('option, words', [
    ('optim_wrapper.optimizer.lr=1e-3', 'lr: was'), ('train_dataloader.batch_size=1', 'batch_size: was 2, is 1')])
def test_a_resume_with_other_settings_is_refused(undisturbed, train, tmp_path, option, words):
    shutil.copytree(undisturbed[0], tmp_path / 'w')
    text = train(tmp_path / 'w', '--resume', '--cfg-options', option, code=2)
    assert words in text and 'Traceback' not in text


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_training_with_a_line_that_says_how_to_go_on(
    undisturbed, train, tmp_path, run_config, repo_root, number, code
):
    process = subprocess.Popen(
        [sys.executable, 'tools/train.py', str(run_config), '--work-dir', str(tmp_path), '-v'],
        cwd=repo_root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if 'Iter(train)' in line and '[1/4]' in line:
            process.send_signal(number)
    assert process.wait(60) == code, ''.join(lines)[-2000:]
    assert lines[-1].startswith('interrupted: ') and '--resume' in lines[-1] and 'Traceback' not in ''.join(lines)
    train(tmp_path, '--resume')
    assert outcome(tmp_path) == outcome(undisturbed[0])


@pytest.fixture(scope='module')
def of_two(run_config, repo_root, tmp_path_factory):
    """Training in two processes under torchrun, to its end or to a signal to the launcher during the first step:
    (exit code, output)."""

    def run(work_dir, *more, number=None):
        process = subprocess.Popen(
            [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', 'tools/train.py',
             str(run_config), '--work-dir', str(work_dir), '--launcher', 'pytorch', '-v', *more],
            cwd=repo_root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'})
        lines = []
        for line in process.stdout:
            lines.append(line)
            if number is not None and 'Iter(train)' in line and '[1/4]' in line:
                process.send_signal(number)
        return process.wait(120), ''.join(lines)

    work_dir = tmp_path_factory.mktemp('two')
    code, text = run(work_dir)
    assert code == 0, text[-3000:]
    run.whole = outcome(work_dir)
    return run


def processes_about(folder):
    """Command lines of running processes that name a folder."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        with suppress(OSError):
            found.append(path.read_bytes().replace(b'\0', b' ').decode(errors='replace'))
    return [line for line in found if str(folder) in line]


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='looks for processes in /proc')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_ends_every_process_and_loses_nothing(of_two, tmp_path, number):
    code, text = of_two(tmp_path, number=number)
    assert code != 0 and text.count('interrupted: ') == 1 and '--resume' in text, text[-3000:]
    assert not processes_about(tmp_path)
    code, text = of_two(tmp_path, '--resume')
    assert code == 0, text[-3000:]
    assert outcome(tmp_path) == of_two.whole


@pytest.mark.parametrize(
    'option, words',
    [
        ('optim_wrapper.optimizer.lr=-1', 'lr'),
        ('optim_wrapper.optimizer.type=Adamm', 'Adamm'),
        ('lr=fast', 'lr'),
        ('optim_wrapper.optimizer.betas=3', 'optim_wrapper'),
        ('model.trainable.llm.r=-2', 'r'),
        ('train_cfg.val_interval=0', 'val_interval'),
        ('param_scheduler=7', 'param_scheduler'),
        ('default_hooks.checkpoint.interval=x', 'interval'),
        ('default_hooks.checkpoint.save_best=dce', 'dce'),
        ('train_dataloader.batch_size=0', 'batch_size'),
        ('train_dataloader.num_workers=-1', 'num_workers'),
        ('model.score_size=-5', 'score_size'),
        ('seed=-3', 'seed'),
        ('seed=1e400', 'seed'),
        ('strategy.type=NoStrategy', 'NoStrategy'),
        ('visualizer.vis_backends=3', 'vis'),
        ('default_hooks.checkpoint.by_epoch=True', 'by_epoch'),
        ('custom_hooks.0.type=NoHook', 'NoHook'),
    ],
)
def test_a_setting_that_libraries_refuse_is_one_line(train, tmp_path, option, words):
    text = train(tmp_path / 'w', '--cfg-options', option, code=2)
    lines = [line for line in text.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1 and words in lines[0], text[-2000:]
    assert 'Traceback' not in text and not list(tmp_path.glob('w/*.pth'))
