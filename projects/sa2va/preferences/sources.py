"""Candidate sources: each proposes masks of one image and says where they come from.

One interface: ``proposals(context) -> iterable of Proposal``. A source computes nothing itself; only proposals that
are drawn are computed. ``needs_policy`` and ``needs_ground_truth`` let bad combinations fail before any work is done.
"""
from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Iterable, Sequence

import numpy as np
from mmengine.registry import Registry

from . import corruption
from .candidates import Context, Proposal, Request
from .views import VIEWS

SOURCES = Registry('candidate source')

GREEDY = Proposal('greedy', Request())

PARAPHRASES = ('Please segment the vessels.', 'Can you segment the blood vessels in this image?',
               'Could you please give the segmentation mask of all blood vessels, including the thin ones?',
               'Segment the vascular tree.')


class Source:
    """Base of candidate sources."""

    needs_policy = True
    needs_ground_truth = False

    def proposals(self, context: Context) -> Iterable[Proposal]:
        """Candidates that could be computed for this image."""
        raise NotImplementedError


@SOURCES.register_module()
class Thresholds(Source):
    """The greedy map cut at other probabilities: thinner and thicker masks of the same ranking of pixels."""

    def __init__(self, probabilities: Sequence[float] = (0.1, 0.2, 0.35, 0.65, 0.8, 0.9)) -> None:
        if not all(0 < p < 1 for p in probabilities):
            raise ValueError(f'Thresholds: probabilities {probabilities} must be between 0 and 1')
        self.probabilities = probabilities

    def proposals(self, context):
        return [Proposal(f'threshold:{p:g}', Request(threshold=p)) for p in self.probabilities]


@SOURCES.register_module()
class Hypotheses(Source):
    """SAM 2's several masks of one prompt (arXiv 2408.00714): those it did not rank first."""

    def proposals(self, context):
        return [Proposal(f'hypothesis:{rank + 1}', Request(rank=rank)) for rank in (1, 2)]


@SOURCES.register_module()
class Views(Source):
    """The policy on a flipped, turned or re-toned image, its map turned back."""

    label = 'view'

    def __init__(self, names: Sequence[str] = ('hflip', 'vflip', 'rot90', 'rot180', 'rot270', 'gamma0.7', 'gamma1.4',
                                               'clahe')) -> None:
        unknown = sorted(set(names) - set(VIEWS))
        if unknown:
            raise ValueError(f'unknown view {", ".join(unknown)}; the views are {", ".join(VIEWS)}')
        self.names = names

    def proposals(self, context):
        return [Proposal(f'{self.label}:{name}', Request(view=name)) for name in self.names]


@SOURCES.register_module()
class Scales(Views):
    """The policy nearer to and farther from the image. Masks have a quarter of SAM 2's input resolution, so pieces of
    the image show vessels that the whole image loses: often the best candidate, at four times the cost."""

    label = 'scale'

    def __init__(self, names: Sequence[str] = ('tiles2', 'zoom0.8')) -> None:
        super().__init__(names)


@SOURCES.register_module()
class SegNoise(Source):
    """The [SEG] embedding plus Gaussian noise of ``scale`` times its root mean square, ``draws`` times each."""

    def __init__(self, scales: Sequence[float] = (0.5, 1.0, 2.0), draws: int = 3) -> None:
        self.scales, self.draws = scales, draws

    def proposals(self, context):
        return [Proposal(f'seg_noise:{scale:g}#{draw}', Request(seg_noise=scale, draw=draw))
                for scale in self.scales for draw in range(self.draws)]


@SOURCES.register_module()
class FeatureDropout(Source):
    """Monte-Carlo dropout on the image embedding (Gal and Ghahramani, arXiv 1506.02142).

    Released checkpoints have no dropout layers that a mask depends on, so the stride-16 embedding takes their place.
    """

    def __init__(self, rates: Sequence[float] = (0.2, 0.4), draws: int = 3) -> None:
        self.rates, self.draws = rates, draws

    def proposals(self, context):
        return [Proposal(f'dropout:{rate:g}#{draw}', Request(dropout=rate, draw=draw))
                for rate in self.rates for draw in range(self.draws)]


@SOURCES.register_module()
class Prompts(Source):
    """The same question in other words."""

    def __init__(self, prompts: Sequence[str] = PARAPHRASES) -> None:
        self.prompts = prompts

    def proposals(self, context):
        return [Proposal(f'prompt:{text}', Request(prompt=f'<image>{text}')) for text in self.prompts]


@SOURCES.register_module()
class Checkpoints(Source):
    """The greedy answers of other checkpoints; each stays in memory."""

    def __init__(self, paths: Sequence[str] = ()) -> None:
        self.paths = paths

    def proposals(self, context):
        return [Proposal(f'checkpoint:{Path(path).name}', Request(checkpoint=str(path))) for path in self.paths]


@SOURCES.register_module()
class Morphology(Source):
    """The greedy mask thicker, thinner or smoother. Synthetic: no policy would answer exactly this."""

    def __init__(self, pixels: Sequence[int] = (1, 2)) -> None:
        self.pixels = pixels

    def proposals(self, context):
        def apply(change, pixels):
            return change(context.sampler.masks([Request()])[0][0], pixels)

        return [Proposal(f'morphology:{change.__name__}{pixels}', make=partial(apply, change, pixels))
                for change in (corruption.thicken, corruption.thin, corruption.smooth) for pixels in self.pixels]


@SOURCES.register_module()
class GroundTruth(Source):
    """The ground truth itself. What it does to preference learning is in docs/pairs.md."""

    needs_policy = False
    needs_ground_truth = True

    def proposals(self, context):
        return [Proposal('ground_truth', make=lambda: context.gt)]


@SOURCES.register_module()
class GroundTruthCorruption(Source):
    """The ground truth with the errors that segmentations make. Synthetic."""

    needs_policy = False
    needs_ground_truth = True

    def __init__(self, drop: Sequence[float] = (0.15, 0.35), gaps: Sequence[int] = (10, 30),
                 false: Sequence[int] = (5, 15), pixels: Sequence[int] = (1, 2)) -> None:
        self.drop, self.gaps, self.false, self.pixels = drop, gaps, false, pixels

    def proposals(self, context):
        found = []
        for change, amounts in ((corruption.drop_branches, self.drop), (corruption.break_centrelines, self.gaps),
                                (corruption.false_branches, self.false)):
            for amount in amounts:
                label = f'corruption:{change.__name__}:{amount:g}'
                found.append(Proposal(label, make=partial(self._random, change, amount, context, label)))
        for change in (corruption.thicken, corruption.thin):
            found += [Proposal(f'corruption:{change.__name__}:{pixels}', make=partial(change, context.gt, pixels))
                      for pixels in self.pixels]
        return found

    @staticmethod
    def _random(change, amount, context: Context, label: str) -> np.ndarray:
        return change(context.gt, amount, context.rng(label))


# The policy's own, each a different way of being uncertain. Other questions, other checkpoints and synthetic masks
# must be asked for.
DEFAULT_SOURCES = ('Scales=2', 'Thresholds', 'Views', 'Hypotheses', 'SegNoise', 'FeatureDropout')
