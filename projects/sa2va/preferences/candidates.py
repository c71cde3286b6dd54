"""What a candidate mask is, how one is asked for, and what candidate sources know about an image."""
from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable

import numpy as np

from sa2va_dpo.evaluation.counts import mask_iou

if TYPE_CHECKING:
    from .sampler import PolicySampler


@dataclass(frozen=True)
class Candidate:
    """A mask of an image.

    Attributes:
        mask: bool [H, W].
        source: where it came from, parameters included (``threshold:0.3``).
        predicted_iou: SAM 2's own estimate of its IoU, where the policy made it.
    """

    mask: np.ndarray
    source: str
    predicted_iou: float | None = None


@dataclass(frozen=True)
class Request:
    """A mask to ask of a policy. The defaults are its greedy answer.

    Attributes:
        view: a name in ``VIEWS``.
        prompt: another question than the run's.
        checkpoint: another checkpoint directory than the run's.
        seg_noise: standard deviation of Gaussian noise on the [SEG] embedding, relative to the embedding's RMS.
        dropout: rate of dropout on the image embedding.
        draw: which of the random draws.
        rank: which hypothesis by falling predicted IoU; 0 is the one that Sa2VA answers with.
        threshold: probability above which a pixel is vessel.
    """

    view: str = 'identity'
    prompt: str | None = None
    checkpoint: str | None = None
    seg_noise: float = 0.0
    dropout: float = 0.0
    draw: int = 0
    rank: int = 0
    threshold: float = 0.5


@dataclass(frozen=True)
class Proposal:
    """A candidate that has not been computed yet: asked of the policy (``request``) or made from masks (``make``)."""

    source: str
    request: Request | None = None
    make: Callable[[], np.ndarray] | None = None


@dataclass
class Context:
    """One image as candidate sources see it.

    Attributes:
        stem: of the image file.
        size: (H, W).
        seed: of the run.
        gt: bool [H, W], ``None`` without ground truth.
        sampler: the policy on this image, ``None`` when masks come from disk.
        prompt: of the run.
    """

    stem: str
    size: tuple[int, int]
    seed: int
    gt: np.ndarray | None = None
    sampler: 'PolicySampler | None' = None
    prompt: str = ''
    missing: list[str] = field(default_factory=list)

    def rng(self, *labels) -> np.random.Generator:
        """Random numbers that depend on the run's seed, the image and the labels, and on nothing done before."""
        return generator(self.seed, self.stem, *labels)


def generator(seed: int, *labels) -> np.random.Generator:
    """A random stream of its own for every combination of labels."""
    return np.random.default_rng([seed, *(zlib.crc32(str(label).encode('utf-8', 'surrogatepass')) for label in labels)])


def evaluate(proposals: list[Proposal], context: Context) -> list[Candidate]:
    """Compute proposals, those of the policy together: encoders run once per view, the decoder once per batch."""
    asked = [proposal for proposal in proposals if proposal.request is not None]
    answers = iter(context.sampler.masks([proposal.request for proposal in asked]) if asked else ())
    candidates = []
    for proposal in proposals:
        if proposal.request is None:
            candidates.append(Candidate(proposal.make(), proposal.source))
        else:
            mask, predicted_iou = next(answers)
            candidates.append(Candidate(mask, proposal.source, predicted_iou))
    return candidates


def pick_distinct(first: list[Proposal], sources: list[tuple[float, list[Proposal]]], count: int, max_iou: float,
                  context: Context) -> tuple[list[Candidate], int]:
    """``count`` candidates that really differ.

    Args:
        first: computed first, in order (the greedy mask, masks on disk).
        sources: (weight, proposals) of each source. Sources take turns in proportion to their weights, each with its
            proposals in random order; only as many are computed as it takes.
        count: how many to keep.
        max_iou: a candidate this similar to one that is kept, or more, is a duplicate.
        context: of the image.

    Returns:
        The kept candidates, in the order they were taken, and the number of duplicates that were left out.
    """
    queue = list(first) + _draw_order(sources, context.rng('order'))
    kept: list[Candidate] = []
    duplicates, batch = 0, max(len(first), 1)
    while queue and len(kept) < count:
        taken, queue = queue[:batch], queue[batch:]
        for candidate in evaluate(taken, context):
            if any(mask_iou(candidate.mask, other.mask) >= max_iou for other in kept):
                duplicates += 1
            elif len(kept) < count:
                kept.append(candidate)
        batch = count - len(kept)
    return kept, duplicates


def _draw_order(sources: list[tuple[float, list[Proposal]]], rng: np.random.Generator) -> list[Proposal]:
    """Smooth weighted round-robin from a random start: shares are kept to within one also in short runs."""
    left = [[weight, [proposals[i] for i in rng.permutation(len(proposals))], weight * rng.random()]
            for weight, proposals in sources]
    order = []
    while left := [source for source in left if source[1]]:
        for source in left:
            source[2] += source[0]
        chosen = max(left, key=lambda source: source[2])
        chosen[2] -= sum(source[0] for source in left)
        order.append(chosen[1].pop())
    return order
