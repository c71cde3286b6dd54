"""Before and after on the same images: is the mean change more than chance?"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np
from scipy.stats import permutation_test

from .bootstrap import bootstrap_ci

# With up to 13 images every assignment of signs is counted (2^13 = 8,192); beyond, this many are drawn.
RESAMPLES = 9999


@dataclass(frozen=True)
class PairedChange:
    """How one metric changed on the same images.

    Attributes:
        mean: of after minus before.
        low, high: its 95 % bootstrap interval over images.
        p_value: two-sided sign-flip permutation test of a mean change of 0: under chance before and after of an image
            could be exchanged (Fisher, The Design of Experiments, 1935). None with one image.
        higher, lower, same: images whose value rose, fell, stayed.
    """

    mean: float
    low: float
    high: float
    p_value: float | None
    higher: int
    lower: int
    same: int


def paired_change(before: Sequence[float], after: Sequence[float], seed: int = 0) -> PairedChange:
    """Compare two equally long lists of one finite number an image, in the same order.

    Images are taken as independent; where several are of one patient the test is too sure of itself.

    Args:
        seed: of the bootstrap and of the drawn permutations.

    Raises:
        ValueError: lists of different length, empty, or with a number that is not finite.
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if first.shape != second.shape:
        raise ValueError(f'before has {first.size} values and after {second.size}: they must be of the same images')
    # Differences below this are rounding of the written files.
    change = np.where(np.abs(second - first) < 5e-7, 0.0, second - first)
    low, high = bootstrap_ci(change.tolist(), seed=seed)
    return PairedChange(
        mean=float(change.mean()),
        low=low,
        high=high,
        p_value=_p_value(change, seed),
        higher=int((change > 0).sum()),
        lower=int((change < 0).sum()),
        same=int((change == 0).sum()),
    )


def _p_value(change: np.ndarray, seed: int) -> float | None:
    if change.size < 2:
        return None
    if not change.any():
        return 1.0
    found = permutation_test(
        (change,), lambda values, axis: np.mean(values, axis=axis), permutation_type='samples', vectorized=True,
        n_resamples=RESAMPLES, batch=max(1, 4_000_000 // change.size), rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
