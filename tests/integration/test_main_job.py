"""bash train_dpo_vessel.sh's job on a micro checkpoint: the chain, its summary, its verdicts."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def folders(make_folders, tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp('my data (2024)'), range(40, 56))


def job(cli, folders, run_config, micro_checkpoint, work_dir, *options, code=0, **kwargs):
    images, gt = folders
    return cli('-m', 'sa2va_dpo', 'job', '--model', micro_checkpoint, '--images', images, '--gt', gt,
               '--config', run_config, '--work-dir', work_dir, '--min_iou_gap', '0.01', *options, code=code, **kwargs)


SHORT = ('--cfg-options', 'optim_wrapper.optimizer.lr=3e-3', 'train_cfg.max_iters=8', 'train_cfg.val_interval=4')


def test_chain(cli, folders, run_config, micro_checkpoint, tmp_path):
    run = job(cli, folders, run_config, micro_checkpoint, tmp_path / 'w', '--sam_size', 'keep', *SHORT)
    summary = json.loads((tmp_path / 'w' / 'summary.json').read_text())
    assert set(summary) >= {
        'before',
        'after',
        'pairs',
        'train_images',
        'seconds',
        'best_checkpoint',
        'exported_hf',
        'seed',
    }
    for side in ('before', 'after'):
        assert set(summary[side]) == {'dice', 'iou', 'precision', 'recall', 'cldice', 'n_images'}
        assert summary[side]['n_images'] == 8
    assert summary['pairs'] == len(json.loads((tmp_path / 'w' / 'pairs' / 'dpo_annotations.json').read_text()))
    assert (tmp_path / 'w' / 'exported_hf' / 'config.json').is_file()
    assert summary['after']['dice'] > summary['before']['dice'], 'random weights must learn dark lines in 8 steps'
    assert 'before     after    change' in run.stdout
    trained_on = {r['image'] for r in json.loads((tmp_path / 'w' / 'pairs' / 'dpo_annotations.json').read_text())}
    validated_on = {r['image'] for r in json.loads((tmp_path / 'w' / 'pairs' / 'val_annotations.json').read_text())}
    tested_on = {f'images/{p.stem}.png' for p in (tmp_path / 'w' / 'test_after' / 'overlays').glob('*.png')}
    assert len(tested_on) == 8 and not (trained_on & validated_on or trained_on & tested_on or validated_on & tested_on)

    again = job(cli, folders, run_config, micro_checkpoint, tmp_path / 'w', '--sam_size', 'keep', *SHORT)
    assert 'has finished before' in again.stdout

    other = job(cli, folders, run_config, micro_checkpoint, tmp_path / 'w', '--seed', '7', code=2)
    assert 'holds a job with other settings' in other.stderr


def test_another_input_size_is_measured_beside_the_start_and_exported(
    cli, folders, run_config, micro_checkpoint, tmp_path
):
    run = job(cli, folders, run_config, micro_checkpoint, tmp_path / 'w', '--sam_size', '192', *SHORT)
    summary = json.loads((tmp_path / 'w' / 'summary.json').read_text())
    assert summary['sam_size']['own'] == 128 and summary['sam_size']['chosen'] == 192
    assert set(summary['start_at_chosen_size']) == set(summary['before'])
    assert summary['start_at_chosen_size'] != summary['before'], 'the start at 192 px is another start'
    exported = tmp_path / 'w' / 'exported_hf'
    assert json.loads((exported / 'sam2_dims.json').read_text())['image_size'] == 192
    assert json.loads((micro_checkpoint / 'sam2_dims.json').read_text())['image_size'] == 128
    assert 'start, resized' in run.stdout and 'at 192 px' in run.stdout
    assert 'score_size=96' in (tmp_path / 'w' / 'training' / 'config.py').read_text(), (
        'masks are scored at half the input size'
    )


def test_a_grid_goes_through_every_stage_and_out_with_the_export(cli, folders, run_config, micro_checkpoint, tmp_path):
    run = job(cli, folders, run_config, micro_checkpoint, tmp_path / 'w', '--sam_size', 'keep', '--grid', '2', *SHORT)
    summary = json.loads((tmp_path / 'w' / 'summary.json').read_text())
    assert summary['view']['own']['grid'] == 1 and summary['view']['exported']['grid'] == 2
    assert summary['start_at_chosen_size'] != summary['before'], 'the start in tiles is another start'
    exported = tmp_path / 'w' / 'exported_hf'
    assert json.loads((exported / 'sa2va_dpo.json').read_text())['view']['grid'] == 2
    assert 'in tiles (grid 2)' in run.stdout
    # A later test of the exported directory looks in the same way.
    again = job(cli, folders, run_config, exported, tmp_path / 'again', '--sam_size', 'keep', *SHORT)
    later = json.loads((tmp_path / 'again' / 'summary.json').read_text())
    assert later['before'] == summary['after'] and later['view']['own']['grid'] == 2 and 'error' not in again.stderr


def test_rounds_mine_and_train_in_tiles_with_a_refinement(cli, folders, run_config, micro_checkpoint, tmp_path):
    job(cli, folders, run_config, micro_checkpoint, tmp_path / 'w', '--sam_size', 'keep', '--grid', '2',
        '--rounds', '2', '--refine', *SHORT, 'cache.lazy=True', f'cache.dir={tmp_path / "cache"}')
    summary = json.loads((tmp_path / 'w' / 'summary.json').read_text())
    assert [record['round'] for record in summary['rounds']['rounds']] == [0, 1]
    assert summary['view']['exported']['grid'] == 2
    # One [SEG] state serves an image's tiles, one map of the reference each.
    kinds = {path.name.split('-')[0]: len(list(path.rglob('*.safetensors')))
             for path in (tmp_path / 'cache').iterdir()}
    assert kinds['reference_low_res'] > kinds.get('seg_states', kinds.get('vision_tokens', 0)) > 0
    # The released weights under their released names, and one file more; what it drew was scored at the full input.
    exported = tmp_path / 'w' / 'exported_hf'
    assert {path.name for path in exported.iterdir()} - {path.name for path in micro_checkpoint.iterdir()} >= {
        'sa2va_dpo_refinement.safetensors', 'sa2va_dpo.json'}
    assert load_file(exported / 'model.safetensors').keys() == load_file(micro_checkpoint / 'model.safetensors').keys()
    refined = load_file(exported / 'sa2va_dpo_refinement.safetensors')
    assert any(tensor.any() for name, tensor in refined.items() if tensor.shape[0] == 16), 'the last layer has moved'
    assert 'score_size = 128' in (tmp_path / 'w' / 'training' / 'config.py').read_text()
    # The exported directory, read again, is what the job tested: a later job begins where this one ended.
    job(cli, folders, run_config, exported, tmp_path / 'later', '--sam_size', 'keep', *SHORT, code=None)
    later = json.loads((tmp_path / 'later' / 'summary.json').read_text())
    assert later['before'] == summary['after']


def test_a_run_that_is_not_better_keeps_the_start_and_exits_3(cli, folders, run_config, micro_checkpoint, tmp_path):
    run = job(cli, folders, run_config, micro_checkpoint, tmp_path / 'w', '--sam_size', 'keep', '--cfg-options',
              'optim_wrapper.optimizer.lr=0.0', 'train_cfg.max_iters=2', code=3)
    summary = json.loads((tmp_path / 'w' / 'summary.json').read_text())
    assert summary['best_checkpoint'] is None and 'NOT BETTER' in run.stdout
    assert summary['after'] == summary['before']
    for path in micro_checkpoint.iterdir():
        assert (tmp_path / 'w' / 'exported_hf' / path.name).read_bytes() == path.read_bytes()


def test_a_better_input_size_is_kept_where_training_adds_nothing(cli, folders, run_config, micro_checkpoint, tmp_path):
    run = job(cli, folders, run_config, micro_checkpoint, tmp_path / 'w', '--sam_size', '192', '--cfg-options',
              'optim_wrapper.optimizer.lr=0.0', 'train_cfg.max_iters=2', code=3)
    summary = json.loads((tmp_path / 'w' / 'summary.json').read_text())
    exported = tmp_path / 'w' / 'exported_hf'
    size = json.loads((exported / 'sam2_dims.json').read_text())['image_size']
    assert size == summary['exported_sam_size'] and size in (128, 192) and 'NOT BETTER' in run.stdout
    assert summary['after'] == (summary['before'] if size == 128 else summary['start_at_chosen_size'])
    assert (exported / 'model.safetensors').read_bytes() == (micro_checkpoint / 'model.safetensors').read_bytes()


@pytest.fixture(scope='module')
def tested_pairs(pair_root, make_folders, tmp_path_factory):
    """The small pair data set with two test images of its own."""
    root = tmp_path_factory.mktemp('tested') / 'pairs'
    shutil.copytree(pair_root, root)
    make_folders(root, (20, 21))
    (root / 'test_annotations.json').write_text(
        json.dumps(
            [
                dict(
                    image=f'images/case_{i}.png',
                    mask=f'gt/case_{i}.png',
                    prompt='<image>Please segment the blood vessels.',
                )
                for i in (20, 21)
            ]
        )
    )
    return root


def job_on_pairs(cli, pairs, run_config, micro_checkpoint, work_dir, *options, code=0):
    return cli('-m', 'sa2va_dpo', 'job', '--model', micro_checkpoint, '--pairs', pairs, '--config', run_config,
               '--sam_size', 'keep', '--work-dir', work_dir, *options, code=code)


def test_pairs_that_exist_are_used_and_the_guides_test_finds_the_checkpoints(
    cli, tested_pairs, run_config, micro_checkpoint, tmp_path
):
    before = {path: path.read_bytes() for path in tested_pairs.rglob('*') if path.is_file()}
    run = job_on_pairs(cli, tested_pairs, run_config, micro_checkpoint, tmp_path / 'w', *SHORT)
    summary = json.loads((tmp_path / 'w/summary.json').read_text())
    assert (summary['pairs'], summary['train_images'], summary['before']['n_images']) == (12, 6, 2)
    assert 'preference pairs that exist: 12 of 6 images' in run.stdout and not (tmp_path / 'w/pairs').exists()
    assert {path: path.read_bytes() for path in tested_pairs.rglob('*') if path.is_file()} == before
    assert {p.stem for p in (tmp_path / 'w/test_after/overlays').glob('*.png')} == {'case_20', 'case_21'}
    # Step 3 of the guide finds it where the guide says.
    cli(
        'tools/test.py',
        run_config,
        tmp_path / 'w/iter_8.pth',
        '--work-dir',
        tmp_path / 'eval',
        '--images',
        tested_pairs / 'images',
        '--gt',
        tested_pairs / 'gt',
        '--no-overlays',
    )
    # The best by the history, whatever else lies there.
    history = json.loads((tmp_path / 'w/training/val_history.json').read_text())
    best = max(history[1:], key=lambda entry: entry['dice'])
    assert summary['best_checkpoint'].endswith(f'training/best_dice_iter_{best["iter"]}.pth')


def test_without_validation_nothing_is_promised(cli, tested_pairs, run_config, micro_checkpoint, tmp_path):
    pairs = tmp_path / 'pairs'
    shutil.copytree(tested_pairs, pairs)
    for name in ('val_annotations.json', 'dpo_annotations_val.json'):
        (pairs / name).unlink()
    run = job_on_pairs(cli, pairs, run_config, micro_checkpoint, tmp_path / 'w', *SHORT)
    assert 'training runs without validation' in run.stdout and 'NOT VALIDATED' in run.stdout
    summary = json.loads((tmp_path / 'w/summary.json').read_text())
    assert summary['best_checkpoint'].endswith('training/iter_8.pth') and summary['validation_dice'] is None


def test_a_test_image_among_the_pairs_is_refused(cli, tested_pairs, run_config, micro_checkpoint, tmp_path):
    shutil.copytree(tested_pairs, tmp_path / 'pairs')
    shutil.copy(tmp_path / 'pairs/images/case_03.png', tmp_path / 'pairs/images/case_20.png')
    refused = job_on_pairs(cli, tmp_path / 'pairs', run_config, micro_checkpoint, tmp_path / 'w', code=2)
    assert 'case_20.png (same picture as' in refused.stderr and refused.stderr.count('\n') == 1
    assert not (tmp_path / 'w/training').exists()


def test_a_training_run_in_the_same_folder_leaks_in_neither_direction(
    cli, folders, tested_pairs, run_config, micro_checkpoint, tmp_path
):
    work_dir = tmp_path / 'w'
    theirs = ('tools/train.py', run_config, '--work-dir', work_dir, '--data-root', tested_pairs)
    cli(*theirs)
    files = {path.name: path.read_bytes() for path in work_dir.iterdir() if path.is_file() and path.suffix != '.lock'}
    run = job(cli, folders, run_config, micro_checkpoint, work_dir, '--sam_size', 'keep', *SHORT)
    # The job neither resumed that run nor touched its files ...
    assert 'holds a run of kind training as well' in run.stdout and '--resume' not in run.stdout
    history = json.loads((work_dir / 'training/val_history.json').read_text())
    assert [entry['iter'] for entry in history] == [0, 4, 8]
    assert {name: (work_dir / name).read_bytes() for name in files} == files
    assert 'another run\'s; this job\'s are in' in run.stdout
    # ... and that run goes on from its own last step, not from the job's.
    cli(*theirs, '--resume', '--cfg-options', 'train_cfg.max_iters=6')
    assert [entry['iter'] for entry in json.loads((work_dir / 'val_history.json').read_text())] == [0, 2, 4, 6]
    # A run on other pairs is refused by name in this folder, and never mixes with the job's.
    refused = cli(
        'tools/train.py', run_config, '--work-dir', work_dir, '--data-root', work_dir / 'pairs', '--resume', code=2
    )
    assert 'holds another run' in refused.stderr and refused.stderr.count('\n') == 1
    refused = cli(
        'tools/train.py',
        run_config,
        '--work-dir',
        work_dir / 'training',
        '--data-root',
        tested_pairs,
        '--resume',
        code=2,
    )
    assert 'holds another run' in refused.stderr
    # --overwrite starts both anew, and says so.
    anew = job(
        cli,
        folders,
        run_config,
        micro_checkpoint,
        work_dir,
        '--sam_size',
        'keep',
        '--overwrite',
        '--cfg-options',
        'optim_wrapper.optimizer.lr=0.0',
        'train_cfg.max_iters=2',
        code=3,
    )
    assert 'iter_2.pth' in anew.stdout and 'removing what an earlier job left there' in anew.stdout
    assert json.loads((work_dir / 'training/val_history.json').read_text())[-1]['iter'] == 2


def test_after_a_job_training_in_its_folder_starts_from_nothing(
    cli, tested_pairs, run_config, micro_checkpoint, tmp_path
):
    work_dir = tmp_path / 'w'
    job_on_pairs(cli, tested_pairs, run_config, micro_checkpoint, work_dir, *SHORT)
    inside = {path.name: path.read_bytes() for path in (work_dir / 'training').iterdir() if path.is_file()}
    assert (work_dir / 'iter_8.pth').is_symlink()
    cli('tools/train.py', run_config, '--work-dir', work_dir, '--data-root', tested_pairs, '--resume')
    assert [entry['iter'] for entry in json.loads((work_dir / 'val_history.json').read_text())] == [0, 2, 4]
    assert {path.name: path.read_bytes() for path in (work_dir / 'training').iterdir() if path.is_file()} == inside
    assert not (work_dir / 'config.py').is_symlink()


def test_killed_in_training_it_goes_on_and_edited_annotations_are_refused(
    cli, folders, run_config, micro_checkpoint, repo_root, tmp_path
):
    images, gt = folders
    work_dir = tmp_path / 'w'
    options = ('--sam_size', 'keep', '--cfg-options', 'optim_wrapper.optimizer.lr=3e-3', 'train_cfg.max_iters=30',
               'train_cfg.val_interval=30', 'default_hooks.checkpoint.interval=2')
    command = [sys.executable, '-m', 'sa2va_dpo', 'job', '--model', micro_checkpoint, '--images', images, '--gt', gt,
               '--config', run_config, '--work-dir', work_dir, '--min_iou_gap', '0.01', *options]
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=repo_root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 300
        while not (work_dir / 'training/last_checkpoint').is_file():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    annotations = work_dir / 'pairs/dpo_annotations.json'
    as_mined = annotations.read_bytes()
    annotations.write_text(json.dumps(json.loads(as_mined)[:-1]))
    refused = job(cli, folders, run_config, micro_checkpoint, work_dir, *options, code=2)
    assert 'dpo_annotations.json: its content has changed' in refused.stderr and 'Traceback' not in refused.stderr
    annotations.write_bytes(as_mined)
    run = job(cli, folders, run_config, micro_checkpoint, work_dir, *options)
    assert '--resume' in run.stdout and '2 of 6' not in run.stdout, 'what was done is not done again'
    assert 'test before training' not in run.stderr
    summary = json.loads((work_dir / 'summary.json').read_text())
    assert summary['after']['dice'] > summary['before']['dice']


@pytest.mark.parametrize('options, words', [
    (['--images', 'no/such/folder', '--gt', 'x'], '--images no/such/folder'),
    (['--images', 'tests'], 'give both folders'),
    (['--model', 'no/such/model'], '--model no/such/model'),
    (['--sam_size', 'large'], '--sam_size large: must be auto, keep or a number'),
    (['--sam_size', '700'], '--sam_size: 700 is no multiple of 64'),
    (['--test_fraction', '0'], '--test_fraction 0: must be above 0'),
    (['--val_fraction', '1'], '--val_fraction 1: must be above 0 and below 1'),
])
def test_bad_input_is_one_line(cli, tmp_path, options, words):
    run = cli('-m', 'sa2va_dpo', 'job', '--work-dir', tmp_path / 'w', *options, code=2)
    assert words in run.stderr and 'Traceback' not in run.stderr
    assert not (tmp_path / 'w').exists()
