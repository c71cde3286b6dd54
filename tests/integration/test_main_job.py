"""bash train_dpo_vessel.sh's job on a micro checkpoint: the chain, its summary, its verdicts."""
import json

import pytest


pytestmark = pytest.mark.integration


@pytest.fixture(scope='module')
def folders(make_folders, tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp('my data (2024)'), range(40, 56))


def job(cli, folders, run_config, micro_checkpoint, work_dir, *options, code=0, **kwargs):
    images, gt = folders
    return cli('-m', 'sa2va_dpo.commands.job.main', '--model', micro_checkpoint, '--images', images, '--gt', gt,
               '--config', run_config, '--work-dir', work_dir, '--min_iou_gap', '0.01', *options, code=code, **kwargs)


SHORT = ('--cfg-options', 'optim_wrapper.optimizer.lr=3e-3', 'train_cfg.max_iters=8', 'train_cfg.val_interval=4')


def test_chain(cli, folders, run_config, micro_checkpoint, tmp_path):
    run = job(cli, folders, run_config, micro_checkpoint, tmp_path / 'w', '--sam_size', 'keep', *SHORT)
    summary = json.loads((tmp_path / 'w' / 'summary.json').read_text())
    assert set(summary) >= {'before', 'after', 'pairs', 'train_images', 'seconds', 'best_checkpoint', 'exported_hf', 'seed'}
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


def test_another_input_size_is_measured_beside_the_start_and_exported(cli, folders, run_config, micro_checkpoint, tmp_path):
    run = job(cli, folders, run_config, micro_checkpoint, tmp_path / 'w', '--sam_size', '192', *SHORT)
    summary = json.loads((tmp_path / 'w' / 'summary.json').read_text())
    assert summary['sam_size']['own'] == 128 and summary['sam_size']['chosen'] == 192
    assert set(summary['start_at_chosen_size']) == set(summary['before'])
    assert summary['start_at_chosen_size'] != summary['before'], 'the start at 192 px is another start'
    exported = tmp_path / 'w' / 'exported_hf'
    assert json.loads((exported / 'sam2_dims.json').read_text())['image_size'] == 192
    assert json.loads((micro_checkpoint / 'sam2_dims.json').read_text())['image_size'] == 128
    assert 'start, resized' in run.stdout and 'at 192 px' in run.stdout
    assert 'score_size=96' in (tmp_path / 'w' / 'config.py').read_text(), 'masks are scored at half the input size'


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
    run = cli('-m', 'sa2va_dpo.commands.job.main', '--work-dir', tmp_path / 'w', *options, code=2)
    assert words in run.stderr and 'Traceback' not in run.stderr
    assert not (tmp_path / 'w').exists()
