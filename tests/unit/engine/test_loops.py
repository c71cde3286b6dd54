"""Endless batches: every epoch whole, shuffled anew, without mmengine's pause."""
from itertools import islice

import pytest
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader

from mmengine.runner.loops import _InfiniteDataloaderIterator

from sa2va_dpo.engine.loops import Endless


@pytest.mark.parametrize('workers', [dict(), dict(num_workers=2), dict(num_workers=2, persistent_workers=True)], ids=str)
def test_epochs_follow_each_other_whole_and_shuffled_anew(monkeypatch, workers):
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: pytest.fail(f'slept {seconds} s'))
    data = list(range(7))
    loader = DataLoader(data, batch_size=3, sampler=DefaultSampler(data, shuffle=True, seed=5), collate_fn=list, **workers)
    endless = Endless(loader)
    assert endless.dataset is data
    # As the training loop takes them; it makes this iterator when it is built.
    iterator = _InfiniteDataloaderIterator(endless)
    assert loader._iterator is None, 'no worker before the first batch is wanted'
    batches = list(islice(iterator, 9))
    epochs = [sum(batches[start:start + 3], []) for start in (0, 3, 6)]
    assert all(sorted(epoch) == data for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    sampler = DefaultSampler(data, shuffle=True, seed=5)
    for number, epoch in enumerate(epochs):
        sampler.set_epoch(number)
        assert epoch == list(sampler), 'the order that mmengine gives'


def test_no_batch_is_an_error_and_not_a_hang():
    with pytest.raises(ValueError, match='no batch'):
        Endless(DataLoader([1, 2], batch_size=3, drop_last=True))
