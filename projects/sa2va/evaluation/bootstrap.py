"""Confidence intervals of a mean over images."""
from __future__ import annotations

from typing import Sequence

import numpy as np

# Bounds the memory of one block of resamples (values drawn at a time).
_BLOCK = 4_000_000


def bootstrap_ci(values: Sequence[float], n_resamples: int = 2000, seed: int = 0,
                 level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979).

    For a paired comparison give the differences per image. One value gives an interval of width 0.

    Args:
        values: one finite number an image (or a seed of training, whatever is to be generalised over).
        n_resamples: how many times to draw ``len(values)`` values with replacement.
        seed: the same seed gives the same interval.
        level: coverage in (0, 1).

    Returns:
        (low, high).

    Raises:
        ValueError: no values, a value that is not finite, ``level`` or ``n_resamples`` out of range.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError('values must be a list of at least one finite number')
    if n_resamples < 1 or not 0 < level < 1:
        raise ValueError(f'n_resamples {n_resamples} must be at least 1 and level {level} in (0, 1)')
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // sample.size)
    means = np.concatenate([sample[generator.integers(sample.size, size=(min(block, n_resamples - start), sample.size))]
                            .mean(1) for start in range(0, n_resamples, block)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
