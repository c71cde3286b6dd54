"""Draws: which item a batch asks for, and the number that fixes everything random about it."""
from __future__ import annotations

import zlib

import numpy as np


class Draw(int):
    """The index of an item, and which draw of a run it is.

    An ``int``, so that it indexes whatever a plain index does. What a data set makes of it (pairs, flips, colours) is a
    function of the run's seed and ``number`` alone: never of workers, processes, or what was drawn before.

    Attributes:
        number: of the draw in the run, counted over all processes.
        visit: how often the same index was drawn before, since the data were last exchanged.
        seed: of the sampler.
    """

    def __new__(cls, index: int, number: int, visit: int = 0, seed: int = 0) -> 'Draw':
        draw = super().__new__(cls, index)
        draw.number, draw.visit, draw.seed = number, visit, seed
        return draw

    def __reduce__(self):
        return Draw, (int(self), self.number, self.visit, self.seed)


def rng_of(seed: int, index: int) -> np.random.Generator:
    """The random numbers of one draw, or, for a plain index, the same ones every time.

    Args:
        seed: of the data set.
    """
    if isinstance(index, Draw):
        return np.random.default_rng([seed, 1, index.seed, index.number])
    return np.random.default_rng([seed, 0, int(index)])


def choose_in_turn(count: int, wanted: int, seed: int, index: int, name: str) -> list[int]:
    """``wanted`` of ``count`` things of an item, different ones at every visit until all had their turn equally often.

    Things stand in a random order that belongs to ``seed`` and ``name``; each visit takes the next ``wanted`` of them,
    and begins again after the last.

    Returns:
        Indices below ``count``, ascending, without repetition; all of them where ``wanted`` is not smaller.
    """
    if wanted >= count:
        return list(range(count))
    own = index.seed if isinstance(index, Draw) else 0
    order = np.random.default_rng([seed, own, zlib.crc32(name.encode('utf-8', 'surrogatepass'))]).permutation(count)
    start = getattr(index, 'visit', 0) * wanted
    return sorted(int(order[(start + i) % count]) for i in range(wanted))
