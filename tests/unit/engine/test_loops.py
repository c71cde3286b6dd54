"""The training loop's batches: one order for all processes, entered at any step."""
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader

from sa2va_dpo.engine.loops import DrawStream, PreferenceTrainLoop, seed_step
from sa2va_dpo.engine.sampling import DrawSampler


class Numbers(list):
    """Items are (index, number of the draw), so that a test sees what reaches a data set, also through workers."""

    def __getitem__(self, index):
        return int(index), index.number


def loader(size=7, batch_size=3, seed=5, **workers) -> DataLoader:
    data = Numbers(range(size))
    return DataLoader(data, batch_size=batch_size, sampler=DrawSampler(data, seed=seed), collate_fn=list, **workers)


@pytest.mark.parametrize('workers', [dict(), dict(num_workers=2), dict(num_workers=2, persistent_workers=True)], ids=str)
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


@pytest.mark.parametrize('epochs, steps', [(1, 3), (2, 5), (0.1, 1)])
def test_epochs_are_passes_over_all_images(epochs, steps):
    runner = SimpleNamespace(param_schedulers=None, visualizer=SimpleNamespace(dataset_meta=None))
    loop = PreferenceTrainLoop(runner, loader(), max_epochs=epochs)
    assert loop.max_iters == steps
