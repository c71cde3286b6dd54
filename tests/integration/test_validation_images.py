"""Pictures of validation images, the tab HPARAMS and the trackers, on the real runner."""
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sa2va_dpo.commands.train import main as train_main
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.engine.validation_images import START_FILE, read_masks
from sa2va_dpo.models.checkpoint import read_trained_tensors

pytestmark = pytest.mark.integration


def events_of(work_dir):
    """Of the newest attempt."""
    return EventAccumulator(str(sorted(work_dir.glob('*/vis_data'))[-1]), size_guidance=dict(images=0)).Reload()


def pictures_of(events):
    """Tag -> step -> uint8 [H, W, 3]."""
    return {tag: {event.step: np.array(Image.open(io.BytesIO(event.encoded_image_string)))
                  for event in events.Images(tag)} for tag in events.Tags()['images']}


def train(config, work_dir, *options, resume=False):
    train_main([str(config), '--work-dir', str(work_dir), *(['--resume'] if resume else []),
                '--cfg-options', 'optim_wrapper.optimizer.lr=1e-2', *options])


@pytest.fixture(scope='module')
def run(run_config, tmp_path_factory):
    """A run of four steps, validated at 0, 2 and 4."""
    work_dir = tmp_path_factory.mktemp('run') / 'w'
    train(run_config, work_dir)
    return work_dir


def test_every_validation_has_its_pictures_the_start_included(run):
    pictures = pictures_of(events_of(run))
    assert sorted(pictures) == [f'val/images/case_0{index}' for index in (6, 7, 8)]
    for steps in pictures.values():
        assert sorted(steps) == [0, 2, 4]
        # One picture more once there is something that can have changed.
        assert steps[2].shape == steps[4].shape and steps[2].shape[1] > 1.2 * steps[0].shape[1]
    names = {path.name for path in (next(run.glob('*/vis_data')) / 'vis_image').iterdir()}
    assert names == {f'val_images_case_0{index}_{step}.png' for index in (6, 7, 8) for step in (0, 2, 4)}
    assert sorted(read_masks(run / START_FILE)) == [0, 1, 2]
    assert {mask.shape for mask in read_masks(run / START_FILE).values()} == {(96, 128)}


def test_a_resumed_run_compares_with_the_same_start(run, run_config, tmp_path):
    train(run_config, tmp_path / 'w', 'train_cfg.max_iters=2')
    train(run_config, tmp_path / 'w', resume=True)
    whole, resumed = pictures_of(events_of(run)), pictures_of(events_of(tmp_path / 'w'))
    assert {tag: list(steps) for tag, steps in resumed.items()} == {tag: [4] for tag in whole}
    assert all(np.array_equal(resumed[tag][4], whole[tag][4]) for tag in whole)


def test_a_run_without_pictures_is_the_same_run(run, run_config, tmp_path):
    train(run_config, tmp_path / 'w', 'default_hooks.validation_images.count=0', 'default_hooks.hparams=None')
    assert not (tmp_path / 'w' / START_FILE).exists() and events_of(tmp_path / 'w').Tags()['images'] == []
    ours, theirs = (read_trained_tensors(folder / 'iter_4.pth') for folder in (run, tmp_path / 'w'))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    histories = [(folder / 'val_history.json').read_text() for folder in (run, tmp_path / 'w')]
    measured = [[{name: value for name, value in entry.items() if name != 'sha256'} for entry in json.loads(text)]
                for text in histories]
    assert measured[0] == measured[1]


def test_two_processes_show_what_one_shows(run, run_config, tmp_path, cli):
    cli('tools/train.py', run_config, '--work-dir', tmp_path / 'w', '--launcher', 'pytorch', '--cfg-options',
        'train_cfg.max_iters=2', 'train_dataloader.batch_size=1', processes=2)
    one, two = pictures_of(events_of(run)), pictures_of(events_of(tmp_path / 'w'))
    assert one.keys() == two.keys() and all(sorted(steps) == [0, 2] for steps in two.values())
    for tag in one:
        # Image and ground truth; two threads add up the logits in another order.
        half = one[tag][0].shape[1] // 2
        assert np.array_equal(one[tag][0][:, :half], two[tag][0][:, :half])
    assert sorted(read_masks(tmp_path / 'w' / START_FILE)) == [0, 1, 2], 'the padded fourth is the first again'


def test_tiles_and_one_image(run_config, tmp_path):
    train(run_config, tmp_path / 'w', 'view.grid=2', 'train_cfg.max_iters=2', 'cache=None',
          'default_hooks.validation_images.count=1')
    assert {tag: list(steps) for tag, steps in pictures_of(events_of(tmp_path / 'w')).items()} == {
        'val/images/case_07': [0, 2]}


def test_supervised_training_without_a_validated_start(micro_checkpoint, repo_root, tmp_path):
    config = tmp_path / 'sft.py'
    drawn = 'dict(styles=dict(fundus=1.0), length=3, size=128, cache_dir=None)'
    config.write_text(f'''
_base_ = [{str(repo_root / 'projects/sa2va/configs/sa2va_sft_tiny.py')!r}]
checkpoint = {str(micro_checkpoint)!r}
max_iters = 2
batch_size = 1
score_size = 64
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(source={drawn}))
val_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(source={drawn}))
''')
    train(config, tmp_path / 'w', 'default_hooks.validation_images.count=2')
    pictures = pictures_of(events_of(tmp_path / 'w'))
    assert len(pictures) == 2 and all(list(steps) == [2] for steps in pictures.values())
    # Four pictures of 384 px (128, enlarged) and three gaps: no start, no change.
    assert {steps[2].shape[1] for steps in pictures.values()} == {4 * 384 + 3 * 6}
    assert not (tmp_path / 'w' / START_FILE).exists()


@pytest.mark.parametrize('option, words', [
    ('default_hooks.validation_images.count=-1', 'default_hooks.validation_images.count=-1: must be a whole number'),
    ('default_hooks.validation_images.count=many', "count='many'"),
    ('default_hooks.validation_images.most_steps=1', 'most_steps=1: must be a whole number of at least 2'),
    ('default_hooks.validation_images.cuont=1', 'did you mean default_hooks.validation_images.count?'),
    ('trackers=wandbb', "trackers: 'wandbb': no such tracker: did you mean wandb?"),
    ('trackers.wandbb.project=x', 'did you mean trackers.wandb?'),
    ('trackers=3', 'trackers: 3 must be one of wandb, mlflow, swanlab'),
])
def test_a_mistake_is_one_line_before_anything_is_read(run_config, tmp_path, option, words):
    with pytest.raises(InputError) as error:
        train(run_config, tmp_path / 'w', option, 'checkpoint=no_such_checkpoint')
    assert words in str(error.value).replace('\n', ' ')
    assert not (tmp_path / 'w').exists()


def test_hyper_parameters_and_final_figures(run, run_config):
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = events_of(run)
    data = plugin_data_pb2.HParamsPluginData.FromString(
        events.summary_metadata['_hparams_/session_start_info'].plugin_data.content)
    named = {name: getattr(value, value.WhichOneof('kind')) for name, value in data.session_start_info.hparams.items()}
    assert named['lr'] == 0.01 and named['max_iters'] == 4 and named['batch_size'] == 2 and named['beta'] > 0
    assert named['model.type'] == 'Sa2VADPOModel' and named['model.trainable.llm.r'] == 4
    history = json.loads((run / 'val_history.json').read_text())
    best = max(history[1:], key=lambda entry: entry['dice'])
    final = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()['scalars'] if tag.startswith('final/')}
    assert final['final/best_dice'] == pytest.approx(best['dice']) and final['final/best_step'] == best['iter']
    assert final['final/last_cldice'] == pytest.approx(history[-1]['cldice'])
    assert final['final/gain'] == pytest.approx(best['dice'] - history[0]['dice'], abs=1e-6)
    assert final['final/step'] == 4 and 'final/loss' in final
    experiment = plugin_data_pb2.HParamsPluginData.FromString(
        events.summary_metadata['_hparams_/experiment'].plugin_data.content).experiment
    assert {info.name.tag for info in experiment.metric_infos} == set(final)
    assert len(list(run.glob('*/vis_data/events*'))) == 1 and len(list(run.rglob('events*'))) == 1


STAND_IN = '''
import json, os

def __getattr__(name):
    if name.startswith('__'):
        raise AttributeError(name)
    def call(*args, **kwargs):
        with open(os.environ['STAND_IN_LOG'], 'a') as file:
            print(json.dumps([name, args, kwargs], default=str), file=file)
        return None if name == 'get_experiment_by_name' else Session()
    return call

class Session:
    def __getattr__(self, name):
        return Session() if name == 'config' else globals()['__getattr__'](name)

config = Session()
'''


@pytest.mark.parametrize('name, scalars, pictures', [
    ('wandb', 'log', 'Image'), ('mlflow', 'log_metrics', 'log_image'), ('swanlab', 'log', 'Image')])
def test_one_setting_reports_a_run_to_a_tracker(run, run_config, tmp_path, cli, name, scalars, pictures):
    (tmp_path / f'{name}.py').write_text(STAND_IN)
    log = tmp_path / 'calls.jsonl'
    cli('tools/train.py', run_config, '--work-dir', tmp_path / 'w', '--cfg-options', f'trackers={name}',
        env=dict(PYTHONPATH=str(tmp_path), STAND_IN_LOG=str(log)))
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    names = [call[0] for call in calls]
    # Three images at steps 0, 2 and 4; figures of every step and validation; beside TensorBoard and the local files.
    assert names.count(pictures) == 9 and names[-1] in ('finish', 'end_run')
    logged = {key for call in calls if call[0] == scalars for key in call[1][0]}
    assert {'dpo_loss', 'val/dice', 'optim/lr'} <= logged
    assert pictures_of(events_of(tmp_path / 'w')).keys() == pictures_of(events_of(run)).keys()
    assert list((tmp_path / 'w').glob('*/vis_data/scalars.json'))
    assert f"trackers = '{name}'" in (tmp_path / 'w/config.py').read_text()


def test_a_tracker_that_is_not_installed_ends_the_run_before_it_begins(run_config, tmp_path, cli):
    # Stands before site-packages, wherever the real one is installed.
    (tmp_path / 'wandb.py').write_text("raise ModuleNotFoundError(\"No module named 'wandb'\", name='wandb')")
    done = cli('tools/train.py', run_config, '--work-dir', tmp_path / 'w', '--cfg-options', 'trackers=wandb', code=2,
               env=dict(PYTHONPATH=str(tmp_path)))
    assert done.stderr.strip().splitlines()[-1] == (
        "error: trackers=wandb needs the package wandb, which is not installed: pip install 'sa2va-dpo[trackers]'")
    assert not (tmp_path / 'w').exists()
