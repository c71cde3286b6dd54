"""Which validation images are shown, at which validations, and under which names."""
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.visualization import Visualizer
from mmengine.visualization.vis_backend import BaseVisBackend, LocalVisBackend, MLflowVisBackend
from torch.utils.data import DataLoader, RandomSampler

from sa2va_dpo.engine.validation_images import (
    START_FILE,
    ValidationImagesHook,
    add_image,
    check_counts,
    read_masks,
    spread,
    write_masks,
)


class Recorder(BaseVisBackend):
    def __init__(self):
        super().__init__('x')
        self.images = []

    experiment = property(lambda self: self)

    def add_image(self, name, image, step=0, **more):
        self.images.append((name, image, step))

    def add_config(self, *args, **more): ...
    add_graph = add_scalar = add_scalars = _init_env = add_config


def sample(name, pred=True, **more):
    mask = np.zeros((8, 8), bool)
    mask[2:4] = True
    return dict(image=np.zeros((8, 8, 3), np.uint8), pred_mask=mask if pred else ~mask, gt_mask=mask, image_id=name,
                **more)


class Runner(SimpleNamespace):
    """Validates ``samples`` in batches of two."""

    def __init__(self, folder, samples, max_iters=10, val_interval=5, sampler=None):
        self.backend, messages = Recorder(), []
        super().__init__(
            iter=0, work_dir=str(folder), samples=samples, messages=messages,
            visualizer=SimpleNamespace(_vis_backends=dict(recorder=self.backend)),
            logger=SimpleNamespace(warning=messages.append),
            train_loop=SimpleNamespace(max_iters=max_iters, val_interval=val_interval, stop_training=False),
            val_dataloader=DataLoader(samples, batch_size=2, shuffle=False, sampler=sampler, collate_fn=list))

    def validate(self, hook, step=None):
        self.iter = self.iter if step is None else step
        hook.before_val_epoch(self)
        for index in range(0, len(self.samples), 2):
            hook.after_val_iter(self, index // 2, None, self.samples[index:index + 2])
        hook.after_val(self)

    @property
    def shown(self):
        return [(name, step) for name, _, step in self.backend.images]


@pytest.mark.parametrize('images, count, expected', [
    (10, 4, [0, 3, 6, 9]), (3, 4, [0, 1, 2]), (1, 4, [0]), (0, 4, []), (9, 1, [4]), (5, 2, [0, 4]), (7, 0, [])])
def test_images_are_spread_over_the_set(images, count, expected):
    assert spread(images, count) == expected


def test_always_the_same_ones_with_the_start_beside_them(tmp_path):
    hook, runner = ValidationImagesHook(count=2), Runner(tmp_path, [sample(name) for name in 'abcde'])
    hook.before_train(runner)
    for step in (0, 5, 10):
        runner.validate(hook, step)
    assert runner.shown == [(f'val/images/{name}', step) for step in (0, 5, 10) for name in 'ae']
    start, later = (runner.backend.images[index][1] for index in (0, 2))
    assert later.shape[1] > start.shape[1]
    assert sorted(read_masks(tmp_path / START_FILE)) == [0, 4]


def test_a_resumed_run_reads_the_start_and_a_new_one_forgets_it(tmp_path):
    write_masks(tmp_path / START_FILE, {0: sample('a')['pred_mask'], 1: np.ones((3, 3), bool)})
    hook, runner = ValidationImagesHook(), Runner(tmp_path, [sample('a', pred=False), sample('b')])
    runner.iter = 5
    hook.before_train(runner)
    runner.validate(hook)
    first, second = (image for _, image, _ in runner.backend.images)
    assert first.shape[1] > second.shape[1], 'the mask of another image is not compared with'
    runner.iter = 0
    ValidationImagesHook().before_train(runner)
    assert not (tmp_path / START_FILE).exists()


@pytest.mark.parametrize('content', [b'', b'no zip at all', b'PK\x03\x04'])
def test_a_damaged_start_costs_a_picture_not_a_run(tmp_path, content):
    (tmp_path / START_FILE).write_bytes(content)
    assert read_masks(tmp_path / START_FILE) == {} == read_masks(tmp_path / 'missing')


def test_masks_of_any_size_come_back(tmp_path):
    rng = np.random.default_rng(0)
    masks = {index: rng.random(size) < 0.5 for index, size in enumerate([(1, 1), (7, 9), (16, 8), (3, 65)])}
    write_masks(tmp_path / 'm.npz', masks)
    again = read_masks(tmp_path / 'm.npz')
    assert masks.keys() == again.keys() and all(np.array_equal(masks[index], again[index]) for index in masks)


def test_a_long_run_is_shown_at_most_so_often(tmp_path):
    hook = ValidationImagesHook(count=1, most_steps=20)
    runner = Runner(tmp_path, [sample('a')], max_iters=10_003, val_interval=10)
    hook.before_train(runner)
    for step in [*range(0, 10_003, 10), 10_003]:
        runner.validate(hook, step)
    steps = [step for _, step in runner.shown]
    assert len(steps) == 20 and steps[0] == 0 and steps[-1] == 10_003 and len(set(np.diff(steps[:-1]))) == 1


def test_an_early_end_is_shown(tmp_path):
    hook, runner = ValidationImagesHook(most_steps=2), Runner(tmp_path, [sample('a')], max_iters=1000)
    hook.before_train(runner)
    runner.validate(hook, 5)
    runner.train_loop.stop_training = True
    runner.validate(hook, 10)
    assert runner.shown == [('val/images/a', 10)]


def test_images_of_one_name_are_kept_apart(tmp_path):
    hook, runner = ValidationImagesHook(), Runner(tmp_path, [sample('a/b'), sample('a/b'), sample('c')])
    hook.before_train(runner)
    runner.validate(hook)
    names = [name for name, _ in runner.shown]
    assert len(set(names)) == 3 and all(name.count('/') == 2 for name in names)


def test_what_has_no_images_is_said_once_and_not_shown(tmp_path):
    hook, runner = ValidationImagesHook(), Runner(tmp_path, [dict(score=1.0), dict(score=2.0)])
    hook.before_train(runner)
    runner.validate(hook), runner.validate(hook, 5)
    assert runner.shown == [] and len(runner.messages) == 1 and 'does not hand on images' in runner.messages[0]


def test_an_order_that_changes_is_said_and_not_shown(tmp_path):
    samples = [sample('a'), sample('b')]
    hook, runner = ValidationImagesHook(), Runner(tmp_path, samples, sampler=RandomSampler(samples))
    hook.before_train(runner)
    runner.validate(hook)
    assert runner.shown == [] and 'RandomSampler has no fixed order' in runner.messages[0]


def test_nothing_is_shown_where_nothing_is_trained_or_wanted(tmp_path):
    runner = Runner(tmp_path, [sample('a')])
    runner.validate(ValidationImagesHook())
    off = ValidationImagesHook(count=0)
    off.before_train(runner)
    runner.validate(off)
    assert runner.shown == [] and not (tmp_path / START_FILE).exists()


@pytest.mark.parametrize('settings', [dict(count=-1), dict(count=True), dict(count='4'), dict(count=1.5),
                                      dict(count=None), dict(most_steps=1)])
def test_numbers_that_make_no_sense(settings):
    with pytest.raises(ValueError, match='must be a whole number of at least'):
        ValidationImagesHook(**settings)
    with pytest.raises(ValueError, match=f'^{next(iter(settings))}='):
        check_counts(settings)


def test_mmengines_own_backends_get_names_that_they_take(tmp_path):
    class Stock(MLflowVisBackend):
        def add_image(self, name, image, step=0, **more):
            calls.append((name, step))

    calls, plain = [], Recorder()
    visualizer = Visualizer(vis_backends=[LocalVisBackend(str(tmp_path)), Stock(str(tmp_path)), plain])
    add_image(visualizer, 'val/images/a', np.zeros((4, 4, 3), np.uint8), 20)
    assert calls == [('val/images/a/00000020.png', 20)]
    assert [(name, step) for name, _, step in plain.images] == [('val/images/a', 20)]
    # mmengine makes no folders and OpenCV says nothing: the picture has to be there.
    assert [path.name for path in tmp_path.rglob('*.png')] == ['val_images_a_20.png']
