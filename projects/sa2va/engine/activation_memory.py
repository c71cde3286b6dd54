"""Whether activations may stay in GPU memory until the backward pass: the arithmetic, without a GPU."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

# Share of what a process may hold that stays free: fragments of the allocator, libraries that allocate late.
MARGIN = 0.1
# Parts whose activations grow with the number of image tokens; SAM2's input has one size.
_GROWING = ('llm', 'vision')


def allowed(available: int, limit: int) -> int:
    """What a step may take, bytes: what is available less ``MARGIN`` of the limit, not below 0; see
    :class:`Measured`."""
    return max(0, available - int(MARGIN * limit))


@dataclass(frozen=True)
class Measured:
    """What one process measured; bytes where nothing else is said.

    Attributes:
        limit: what it may hold at most: the card's memory, or the cap of PyTorch's allocator where that is less.
        available: what tensors may still take between two steps, the optimiser's states being there.
        step: the peak of a step above what was there before it, all layers keeping their inputs only.
        kept: part -> what its layers hold more at the end of the forward pass where they keep everything; None: it ran
            out of memory.
        tokens: image tokens of the largest batch that can come, as a multiple of those of the batch measured.
        pairs: preference pairs, likewise.
    """

    limit: int
    available: int
    step: int
    kept: Mapping[str, int | None]
    tokens: float = 1.0
    pairs: float = 1.0

    @property
    def allowed(self) -> int:
        """See :func:`allowed`."""
        return allowed(self.available, self.limit)

    def cost(self, part: str) -> float:
        """What keeping the activations of a part adds to a step of the largest batch, bytes; infinite where unknown."""
        kept = self.kept[part]
        if kept is None:
            return float('inf')
        return kept * (max(1.0, self.tokens) if part in _GROWING else 1.0)

    def need(self, parts: Sequence[str]) -> float:
        """What a step of the largest batch takes where ``parts`` keep their activations, bytes.

        An upper bound: the step measured holds the run-again of one layer as well, and what in it does not grow with
        the batch (DeepSpeed's buckets) is scaled like the rest.
        """
        return self.step * max(1.0, self.tokens, self.pairs) + sum(self.cost(part) for part in parts)


@dataclass(frozen=True)
class Decision:
    """Attributes:
        kept: parts whose layers keep all activations, in the order in which they were chosen.
        line: one for the log.
    """

    kept: tuple[str, ...]
    line: str


def decide(every: Sequence[Measured]) -> Decision:
    """One decision for all processes of a run.

    Parts are kept one after the other as long as the step fits on every process, the part that takes least first: on
    the sizes that were measured, running a part again takes about as long for each of them (docs/speed.md), so that
    this order saves most time for its memory.

    Args:
        every: of each process; at least one, all with the same parts.
    """
    order = sorted(every[0].kept, key=lambda part: (max(one.cost(part) for one in every), part))
    kept: list[str] = []
    for part in order:
        if all(one.need([*kept, part]) <= one.allowed for one in every):
            kept.append(part)
    inputs = [part for part in order if part not in kept]
    tightest = min(every, key=lambda one: one.allowed - one.need(order))
    may = f'it may take {_gib(tightest.allowed)}'
    if not inputs:
        return Decision(tuple(kept), f'activations: kept (a step takes {_gib(tightest.need(order))} GiB, {may})')
    unknown = [part for part in order if tightest.kept[part] is None]
    why = (f'keeping those of {" and ".join(unknown)} runs out of memory, a step may take {_gib(tightest.allowed)} GiB'
           if unknown else f'keeping all, a step would take {_gib(tightest.need(order))} GiB, {may}')
    how = (f'kept in {" and ".join(kept)}, inputs only in {" and ".join(inputs)}' if kept
           else 'layers keep their inputs only')
    return Decision(tuple(kept), f'activations: {how} ({why})')


def _gib(number: float) -> str:
    return f'{number / 2 ** 30:.1f}'
