"""The training loop's batches: one order for all processes, entered at any step."""
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.engine.loops import DrawStream, PreferenceTrainLoop, interval_of, seed_step
from sa2va_dpo.engine.sampling import DrawSampler


class Numbers(list):
    """Items are (index, number of the draw), so that a test sees what reaches a data set, also through workers."""

    def __getitem__(self, index):
        return int(index), index.number


def loader(size=7, batch_size=3, seed=5, **workers) -> DataLoader:
    data = Numbers(range(size))
    return DataLoader(data, batch_size=batch_size, sampler=DrawSampler(data, seed=seed), collate_fn=list, **workers)


@pytest.mark.parametrize(
    'workers', [dict(), dict(num_workers=2), dict(num_workers=2, persistent_workers=True)], ids=str
)
def test_a_stream_entered_at_a_step_goes_on_as_the_whole_one(monkeypatch, workers):
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: pytest.fail(f'slept {seconds} s'))
    whole = list(islice(DrawStream(loader(**workers), lambda: 0), 7))
    later = list(islice(DrawStream(loader(**workers), lambda: 4), 3))
    assert later == whole[4:]
    flat = sum(whole, [])
    assert [number for _, number in flat] == list(range(21))
    passes = [[index for index, _ in flat[start:start + 7]] for start in (0, 7, 14)]
    assert all(sorted(one) == list(range(7)) for one in passes) and len({tuple(one) for one in passes}) == 3


def test_no_worker_before_the_first_batch_is_wanted():
    data = loader(num_workers=2, persistent_workers=True)
    stream = DrawStream(data, lambda: 0)
    assert data._iterator is None
    next(stream)
    assert data._iterator is not None


def test_exchanged_data_are_passed_over_from_their_first_step():
    data = loader(size=6)
    batches = list(islice(DrawStream(data, lambda: 5, since=5), 2))
    assert sorted(index for index, _ in sum(batches, [])) == list(range(6))
    assert [number for _, number in sum(batches, [])] == list(range(15, 21)), 'numbers go on'


def test_a_sampler_that_repeats_itself_is_refused():
    data = [1, 2, 3]
    with pytest.raises(ValueError, match="train_dataloader.sampler: DefaultSampler .*type='DrawSampler'"):
        DrawStream(DataLoader(data, sampler=DefaultSampler(data, seed=0)), lambda: 0)


def test_random_numbers_of_a_step_are_its_own():
    def numbers(*where):
        seed_step(*where)
        return torch.rand(3)

    first = numbers(0, 4, 0)
    torch.rand(17)
    assert torch.equal(numbers(0, 4, 0), first)
    for other in ((1, 4, 0), (0, 5, 0), (0, 4, 1)):
        assert not torch.equal(numbers(*other), first)


def loop_of(cfg=None, schedules=None, **settings) -> tuple[PreferenceTrainLoop, list[str]]:
    """A loop over seven images, three a step, and what it logged."""
    lines: list[str] = []
    runner = SimpleNamespace(
        param_schedulers=schedules,
        visualizer=SimpleNamespace(dataset_meta=None),
        cfg=Config(cfg or {}),
        logger=SimpleNamespace(info=lines.append),
    )
    return PreferenceTrainLoop(runner, loader(), **settings), lines


@pytest.mark.parametrize('epochs, steps', [(1, 3), (2, 5), (0.1, 1)])
def test_epochs_are_passes_over_all_images(epochs, steps):
    assert loop_of(max_epochs=epochs)[0].max_iters == steps


@pytest.mark.parametrize(
    'iters, interval', [(1, 1), (4, 1), (5, 1), (23, 4), (80, 16), (999, 199), (1000, 200), (50_000, 200)]
)
def test_at_least_five_validations_a_run(iters, interval):
    assert interval_of(iters) == interval
    validated = sum(step % interval == 0 or step == iters for step in range(1, iters + 1))
    assert validated >= min(5, iters)


def test_the_interval_follows_the_length_unless_set():
    loop, [line] = loop_of(dict(val_cfg=dict(type='ValLoop')), max_iters=80, val_interval='auto')
    assert loop.val_interval == 16 and line == '80 iterations, validated every 16'
    assert loop_of(max_iters=80, val_interval=20)[0].val_interval == 20


def test_schedules_get_the_run_s_length_and_unreached_ones_are_left_out():
    one_cycle = dict(type='OneCycleLR', total_steps='auto', by_epoch=False)
    loop, _ = loop_of(schedules=[one_cycle, dict(type='CosineAnnealingLR', by_epoch=False, begin=10)], max_iters=9)
    assert loop.runner.param_schedulers == [dict(type='OneCycleLR', total_steps=9, by_epoch=False)]


def test_a_config_that_nobody_settled_is_refused():
    with pytest.raises(InputError, match='lr=1.0, but optim_wrapper.optimizer.lr=2.0'):
        loop_of(
            dict(lr=1.0, optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2.0))), max_iters=1
        )
