"""Candidates of one image -> distinct candidates -> pairs."""
from __future__ import annotations

from typing import Iterable, Sequence

import numpy as np

from .sources import Candidate


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool masks; two empty masks agree (1)."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def pick_distinct(groups: Sequence[Iterable[Candidate]], count: int, max_iou: float,
                  rng: np.random.Generator) -> tuple[list[Candidate], int]:
    """``count`` candidates that really differ, taken in turn from every source in random order.

    Args:
        groups: the candidates of each source; the first group is taken first and whole (the greedy mask).
        count: how many to keep.
        max_iou: a candidate this similar to one that is kept, or more, is a duplicate.

    Returns:
        The kept candidates and the number of duplicates that were left out.
    """
    first, *others = [list(group) for group in groups]
    for group in others:
        rng.shuffle(group)
    queue = list(first)
    while any(others):
        for index in rng.permutation(len(others)):
            if others[index]:
                queue.append(others[index].pop())
    kept: list[Candidate] = []
    duplicates = 0
    for candidate in queue:
        if len(kept) == count:
            break
        if any(mask_iou(candidate.mask, other.mask) >= max_iou for other in kept):
            duplicates += 1
        else:
            kept.append(candidate)
    return kept, duplicates


def make_pairs(scores: Sequence[float], min_gap: float, limit: int | None) -> tuple[list[tuple[int, int]], int]:
    """Which candidate is preferred to which.

    Pairs of the best candidate with every other come first, then the rest by falling gap, up to ``limit``.

    Args:
        scores: of each candidate, higher is better.
        min_gap: smaller differences make no pair; a tie never does.
        limit: pairs per image; ``None`` keeps all.

    Returns:
        (chosen, rejected) indices and the number of pairs dropped for their gap.
    """
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    pairs, dropped = [], 0
    for rank, chosen in enumerate(order):
        for rejected in order[rank + 1:]:
            gap = scores[chosen] - scores[rejected]
            if gap <= 0 or gap < min_gap:
                dropped += 1
            else:
                pairs.append((rank > 0, -gap, chosen, rejected))
    pairs.sort()
    return [(chosen, rejected) for *_, chosen, rejected in pairs[:limit]], dropped
