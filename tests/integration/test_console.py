"""A run's terminal: a screenful before the first step, no line wider than the terminal, and a log that has the rest."""
import sys

import pytest

from tests.unit.common.test_console import lines_of, on_terminal

pytestmark = pytest.mark.integration
# What used to stand before the first step.
NOISE = ('System environment:', 'custom_hooks = [', 'Hooks will be executed', '(VERY_HIGH   ) RuntimeInfoHook')


def train(run_config, work_dir, repo_root, *options):
    return [sys.executable, str(repo_root / 'tools/train.py'), str(run_config), '--work-dir', work_dir, *options]


def log_of(work_dir) -> str:
    [path] = work_dir.glob('*/*.log')
    return path.read_text()


def test_training_in_a_pipe(cli, run_config, repo_root, tmp_path):
    done = cli('tools/train.py', run_config, '--work-dir', tmp_path)
    before = done.stdout.splitlines()[:done.stdout.splitlines().index('validation Dice of the start: '
                                                                      + done.stdout.split('of the start: ')[1][:6])]
    assert [line.split()[0] for line in before] == ['model', 'data', 'run', 'machine', 'log']
    assert '4 steps of 2 images, validated every 2' in done.stdout and 'float32 on CPU' in done.stdout
    assert len(done.stdout.splitlines()) <= 10 and len(done.stderr.splitlines()) <= 6, done.stderr
    assert '\r' not in done.stdout + done.stderr and '\x1b' not in done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith('training: 4 of 4 steps, ') and 'loss ' in last and 'acc ' in last and 'Dice ' in last
    assert f'next: python tools/test.py {run_config} {tmp_path}/' in done.stdout
    log = log_of(tmp_path)
    for text in (*NOISE, 'Iter(train) [4/4]', 'dpo_loss', 'chosen_rewards', 'rejected_rewards', 'margin: '):
        assert text in log and text not in done.stdout + done.stderr


def test_training_on_a_terminal_of_80_columns(run_config, repo_root, tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    lines = lines_of(on_terminal(train(run_config, 'w', repo_root), cwd=tmp_path))
    # A path is never broken.
    assert all(len(line) <= 80 or ' ' not in line.strip() for line in lines), max(lines, key=len)
    first = next(i for i, line in enumerate(lines) if line.startswith('training 1/4'))
    assert len([line for line in lines[:first] if not line.startswith('training 0/4')]) <= 10
    assert any(line.startswith('training 4/4') and 'Dice' in line for line in lines)
    assert all(text in log_of(tmp_path / 'w') for text in NOISE)


def test_verbose_brings_everything_back(cli, run_config, tmp_path):
    done = cli('tools/train.py', run_config, '--work-dir', tmp_path, '-v')
    for text in (*NOISE, 'Iter(train) [4/4]', 'dpo_loss'):
        assert text in done.stdout


def test_two_processes_speak_once(cli, run_config, tmp_path):
    done = cli('tools/train.py', run_config, '--work-dir', tmp_path, '--launcher', 'pytorch', processes=2)
    for text in ('run       4 steps', 'validation Dice of the start', 'next: '):
        assert done.stdout.count(text) == 1, done.stdout
    assert done.stderr.count('training: 4 of 4 steps') == 1 and '2 processes' in done.stdout


def test_why_a_run_ends_early_is_said(cli, run_config, tmp_path):
    stop = "dict(type='EarlyStoppingHook', monitor='dice', rule='greater', min_delta=0.5, patience=1)"
    config = tmp_path / 'early.py'
    config.write_text(f'_base_ = [{str(run_config)!r}]\ncustom_hooks = [dict(type="StartValidationHook"), {stop}]\n')
    done = cli('tools/train.py', config, '--work-dir', tmp_path / 'w')
    assert 'did not improve' in done.stdout and 'ended early, after step 2 of 4' in done.stdout


def test_the_alarm_and_what_is_not_there_are_said(cli, run_config, tmp_path):
    config = tmp_path / 'alarm.py'
    config.write_text(f'_base_ = [{str(run_config)!r}]\ncustom_hooks = [dict(type="StartValidationHook"), '
                      'dict(type="PreferenceAlarmHook", min_drop=-1.0)]\n')
    assert 'ALARM at iteration 2' in cli('tools/train.py', config, '--work-dir', tmp_path / 'a').stdout
    without = cli('tools/train.py', run_config, '--work-dir', tmp_path / 'b', '--cfg-options', 'val_dataloader=None',
                  'val_cfg=None', 'val_evaluator=None', 'default_hooks.checkpoint.save_best=None')
    assert 'warning: val_dataloader=None, so this run is not validated' in without.stdout


def test_a_job_counts_its_stages_and_fits_a_screen(cli, make_folders, run_config, micro_checkpoint, tmp_path):
    images, gt = make_folders(tmp_path / 'data', range(40, 56))
    done = cli('-m', 'sa2va_dpo', 'job', '--model', micro_checkpoint, '--images', images, '--gt', gt, '--config',
               run_config, '--work-dir', tmp_path / 'w', '--min_iou_gap', '0.01', '--sam_size', 'keep', '--cfg-options',
               'optim_wrapper.optimizer.lr=3e-3', 'train_cfg.max_iters=4', 'train_cfg.val_interval=2', code=None)
    assert done.returncode in (0, 3), done.stderr
    lines = done.stdout.splitlines()
    stages = [line.split(':')[0] for line in lines if ' of 6: ' in line]
    assert stages == [f'{number} of 6' for number in range(1, 7)]
    assert [line.split()[0] for line in lines[:5]] == ['model', 'data', 'config', 'machine', 'results']
    first = next(i for i, line in enumerate(lines) if line.startswith('validation Dice of the start'))
    assert first <= 20 and len(lines) + len(done.stderr.splitlines()) <= 45
    assert 'next: python -m sa2va_dpo predict' in done.stdout and lines.count(lines[-1]) == 1
    assert 'System environment' not in done.stdout and 'System environment' in log_of(tmp_path / 'w/training')
    log = (tmp_path / 'w/job.log').read_text()
    assert 'sa2va_dpo.commands.train' in log and 'wins by source' in log and 'wins by source' not in done.stdout


def test_test_and_pairs_are_quiet_too(cli, make_folders, run_config, micro_checkpoint, tmp_path):
    images, gt = make_folders(tmp_path / 'data', range(40, 46))
    done = cli('tools/test.py', run_config, '--images', images, '--gt', gt, '--work-dir', tmp_path / 'eval')
    assert 'scoring the start' in done.stdout and '6 images on CPU' in done.stdout and 'cldice' in done.stdout
    assert len(done.stdout.splitlines()) <= 16 and (tmp_path / 'eval/test.log').is_file()
    made = cli('scripts/generate_dpo_dataset.py', '--mode', 'generate', '--images_dir', images, '--gt_dir', gt,
               '--output_dir', tmp_path / 'pairs', '--model_path', micro_checkpoint, '--min_iou_gap', '0.01')
    assert 'training pairs of' in made.stdout and 'wins by source' not in made.stdout
    assert 'wins by source' in (tmp_path / 'pairs/pairs.log').read_text()
    assert f'next: python scripts/review_pairs.py --data_root {tmp_path}' in made.stdout
    assert 'gap: mean' in cli('scripts/generate_dpo_dataset.py', '--mode', 'generate', '--images_dir', images,
                              '--gt_dir', gt, '--output_dir', tmp_path / 'pairs', '--model_path', micro_checkpoint,
                              '--min_iou_gap', '0.01', '--verbose').stdout, 'the finished run, with everything'
