"""The vocabulary of key mappings: which released tensors make which of ours, in both directions."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

import torch

Tensors = Sequence[torch.Tensor]


def _same(tensors: Tensors) -> list[torch.Tensor]:
    return list(tensors)


@dataclass(frozen=True)
class KeyGroup:
    """A set of released tensors and the set of ours that holds the same numbers.

    ``load`` turns the released tensors into ours and ``dump`` turns ours back; both only move numbers about
    (slice, concatenate, repeat), so ``dump(load(x)) == x`` bit for bit. Released shapes follow from ours by
    running ``dump`` on the meta device, so no shape is written down twice.
    """

    released: tuple[str, ...]
    ours: tuple[str, ...]
    load: Callable[[Tensors], list[torch.Tensor]] = _same
    dump: Callable[[Tensors], list[torch.Tensor]] = _same


def rename(released: str, ours: str) -> KeyGroup:
    """One tensor under two names."""
    return KeyGroup((released,), (ours,))


def split_rows(released: str, ours: Sequence[str]) -> KeyGroup:
    """One released tensor whose first axis holds ours one after the other, in equal parts."""
    n = len(ours)
    return KeyGroup((released,), tuple(ours),
                    lambda ts: [t.clone() for t in ts[0].chunk(n, dim=0)],
                    lambda ts: [torch.cat(list(ts), dim=0)])


def join_rows(released: Sequence[str], ours: str) -> KeyGroup:
    """Several released tensors of equal shape that are the rows of one of ours."""
    n = len(released)
    return KeyGroup(tuple(released), (ours,),
                    lambda ts: [torch.cat(list(ts), dim=0)],
                    lambda ts: [t.clone() for t in ts[0].chunk(n, dim=0)])


def repeat(released: str, ours: Sequence[str]) -> KeyGroup:
    """One released tensor that two or more of ours hold a copy of."""
    n = len(ours)
    return KeyGroup((released,), tuple(ours),
                    lambda ts: [ts[0]] + [ts[0].clone() for _ in range(n - 1)],
                    lambda ts: [ts[0]])


def substitute(name: str, table: Sequence[tuple[str, str]]) -> str:
    """``name`` with every (ours, released) pair of ``table`` applied, in order."""
    for ours, released in table:
        name = name.replace(ours, released)
    return name
