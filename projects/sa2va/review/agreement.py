"""How far two reviewers agree."""
from __future__ import annotations

from typing import Mapping, Sequence

CATEGORIES = ('accept', 'swap', 'drop')


def cohens_kappa(confusion: Sequence[Sequence[int]]) -> float | None:
    """Agreement beyond chance, (p_o - p_e) / (1 - p_e) (Cohen, Educ. Psychol. Meas. 20, 1960).

    Args:
        confusion: [K, K] counts, first rater's categories in rows, second rater's in columns.

    Returns:
        At most 1, 0 for chance; ``None`` where it is not defined: no item, or both raters used one and the same
        category.
    """
    total = sum(map(sum, confusion))
    if not total:
        return None
    observed = sum(row[k] for k, row in enumerate(confusion))
    # In whole numbers, so that "one category" is an exact comparison.
    chance = sum(sum(row) * sum(column) for row, column in zip(confusion, zip(*confusion)))
    if chance == total * total:
        return None
    return (observed * total - chance) / (total * total - chance)


def compare(first: Mapping[str, str], second: Mapping[str, str]) -> dict:
    """Two reviewers' decisions by pair id.

    A skip is no decision: only pairs on which both decided count.

    Returns:
        ``pairs`` (number), ``kappa``, ``observed_agreement`` (share, ``None`` without pairs), ``categories``,
        ``confusion`` (rows: first), ``disagreements`` (list of pair, first, second).
    """
    both = [pair for pair in first if first[pair] in CATEGORIES and second.get(pair) in CATEGORIES]
    confusion = [[sum(first[pair] == a and second[pair] == b for pair in both) for b in CATEGORIES] for a in CATEGORIES]
    return dict(
        pairs=len(both), kappa=cohens_kappa(confusion),
        observed_agreement=sum(first[pair] == second[pair] for pair in both) / len(both) if both else None,
        categories=list(CATEGORIES), confusion=confusion,
        disagreements=[dict(pair=pair, first=first[pair], second=second[pair])
                       for pair in both if first[pair] != second[pair]])
