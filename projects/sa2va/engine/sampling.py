"""The order in which a run draws its images: one order for all processes, entered at any draw."""
from __future__ import annotations

import math
from functools import lru_cache
from typing import Iterator, Sized

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from sa2va_dpo.datasets.draws import Draw


@DATA_SAMPLERS.register_module()
class DrawSampler(Sampler):
    """Endless :class:`Draw` objects: draw ``n`` of a run is a function of the seed, ``n`` and the data set's size.

    All processes share one order and take its draws in turn, so that two processes visit in a step what one process of
    twice the batch size visits. Every image comes once before any comes again. A data set of two ``parts`` (attribute
    ``parts``: two (number of items, share of the draws), the shares adding up to 1) has the shares kept to within one
    draw at any time, and in each part every image comes once before any comes again.

    Args:
        dataset: what is drawn from.
        shuffle: a new order at every pass; without it items come by index.
        seed: the run's; None: one is drawn and shared by the processes.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.dataset, self.shuffle = dataset, shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.first, self.origin = 0, 0
        parts = getattr(dataset, 'parts', None) or [(len(dataset), 1.0)]
        if len(parts) > 2 or abs(sum(share for _, share in parts) - 1) > 1e-9 or any(count < 1 for count, _ in parts):
            raise ValueError(f'DrawSampler: {parts} must be one or two (items, share), none empty, the shares adding '
                             'up to 1')
        self.sizes, self.share = [count for count, _ in parts], parts[0][1]
        # One pass of a large data set is asked for draw by draw.
        self._order = lru_cache(maxsize=4)(self._make_order)

    def start_at(self, first: int, origin: int = 0) -> None:
        """Let the next iteration begin with draw ``first`` of the run; passes are counted from draw ``origin``."""
        self.first, self.origin = first, origin

    def draw(self, number: int) -> Draw:
        """Draw ``number`` of the run."""
        k = number - self.origin
        # Draws of the first part among the first k: the share, rounded down, falls behind by less than one draw.
        taken = _floor(k * self.share)
        part = 0 if _floor((k + 1) * self.share) > taken else 1
        visit, position = divmod(k - taken if part else taken, self.sizes[part])
        offset = self.sizes[0] if part else 0
        return Draw(offset + self._order(part, visit, self.origin)[position], number, visit, self.seed)

    def _make_order(self, part: int, visit: int, origin: int) -> list[int]:
        size = self.sizes[part]
        if not self.shuffle:
            return list(range(size))
        return np.random.default_rng([self.seed, 2, part, visit, origin]).permutation(size).tolist()

    def __iter__(self) -> Iterator[Draw]:
        number = self.first + self.rank
        while True:
            yield self.draw(number)
            number += self.world_size

    def __len__(self) -> int:
        """Draws of this process in a pass over the data set."""
        return math.ceil(len(self.dataset) / self.world_size)


def _floor(value: float) -> int:
    # Products such as 10 * 0.3 may come out a rounding error below the whole number that is meant.
    return math.floor(value + 1e-9)
