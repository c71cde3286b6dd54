"""Judges that vote: mirrored views of one policy, other checkpoints and methods, or one who picks.

The first two need nobody's labels. What nobody looks at can be confidently wrong, so a run that trusts them checks
their ranking on labelled images first (``preferences/rank_agreement.py``).
"""
from __future__ import annotations

from functools import lru_cache
from typing import Sequence

import numpy as np

from sa2va_dpo.datasets.ground_truth import MaskFolder
from sa2va_dpo.evaluation.counts import mask_iou

from .candidates import Candidate, Request
from .from_predictions import read_map
from .judges import JUDGES, Evidence, Judge, expected_iou

MIRRORED = ('identity', 'hflip', 'vflip', 'rot180')  # rot180 is mirrored both ways
MEASURES = ('majority', 'expected')


class Vote(Judge):
    """Base of judges whose belief is a mean of maps.

    Args:
        measure: ``'majority'``: a candidate's score is its IoU with the pixels that at least half believe in;
            ``'expected'``: the IoU to be expected if every pixel is vessel with the believed probability.
    """

    needs_ground_truth = False

    def __init__(self, measure: str = 'majority') -> None:
        if measure not in MEASURES:
            raise ValueError(f'measure {measure!r} must be one of {", ".join(MEASURES)}')
        self.measure = measure

    def scores(self, candidates: Sequence[Candidate], evidence: Evidence) -> np.ndarray:
        belief = self.belief(candidates, evidence)
        if self.measure == 'expected':
            return expected_iou(candidates, belief)
        voted = belief > 0.5
        return np.array([mask_iou(candidate.mask, voted) for candidate in candidates])


@JUDGES.register_module()
class Consensus(Vote):
    """The policy's own maps of mirrored views, averaged: what it says of the image whichever way it is held."""

    needs_policy = True

    def __init__(self, views: Sequence[str] = MIRRORED, measure: str = 'majority') -> None:
        super().__init__(measure)
        if not views:
            raise ValueError('views: name at least one')
        self.views = tuple(views)

    def belief(self, candidates, evidence):
        return np.mean([evidence.context.sampler.probability(view) for view in self.views], axis=0, dtype=np.float32)


@JUDGES.register_module()
class Committee(Vote):
    """Others vote, each with its mask: checkpoints, and folders of masks that methods or people made.

    A member without a mask of an image does not vote on it; where nobody votes, the judge cannot tell.

    Args:
        checkpoints: directories; each stays in memory.
        folders: each holds one mask (or grey probability map) an image, of the same stem.

    Raises:
        ValueError: no member.
        InputError: a folder that is none, or two masks of one image.
    """

    def __init__(self, checkpoints: Sequence[str] = (), folders: Sequence[str] = (), measure: str = 'majority') -> None:
        super().__init__(measure)
        if not checkpoints and not folders:
            raise ValueError('name at least one member: checkpoints or folders')
        self.checkpoints = tuple(checkpoints)
        self.needs_policy = bool(checkpoints)
        self.folders = [_folder(str(folder)) for folder in folders]

    def belief(self, candidates, evidence):
        votes = self.votes(evidence)
        return np.mean(votes, axis=0, dtype=np.float32) if votes else np.full(evidence.context.size, np.nan, np.float32)

    def scores(self, candidates, evidence):
        if not self.votes(evidence):
            return np.full(len(candidates), np.nan)
        return super().scores(candidates, evidence)

    def votes(self, evidence: Evidence) -> list[np.ndarray]:
        """float32 [H, W] of every member that has a mask of this image."""
        context = evidence.context
        found = []
        if self.checkpoints:
            answers = context.sampler.masks([Request(checkpoint=path) for path in self.checkpoints])
            found += [mask.astype(np.float32) for mask, _ in answers]
        for folder in self.folders:
            path = folder.find(context.stem)
            if path is not None:
                found.append(read_map(path, context.size))
        return found


@lru_cache(maxsize=64)
def _folder(path: str) -> MaskFolder:
    return MaskFolder(path)


@JUDGES.register_module()
class Pick(Judge):
    """One who looks at all candidates and names the best, as a person does: 1 for that one, 0 for the others.

    The ground truth stands in for the eye, for studies of what a click is worth.

    Args:
        wrong: probability that the click falls on another candidate, each alike; decided once an image (a cell),
            whatever was decided before.

    Raises:
        ValueError: ``wrong`` is no probability.
    """

    decides = True

    def __init__(self, wrong: float = 0.0) -> None:
        if not 0 <= wrong <= 1:
            raise ValueError(f'wrong {wrong} must be between 0 and 1')
        self.wrong = wrong

    def scores(self, candidates, evidence):
        scores = np.zeros(len(candidates))
        if len(candidates):
            scores[self.pick([mask_iou(c.mask, evidence.gt) for c in candidates], evidence, 'whole')] = 1
        return scores

    def pick(self, values, evidence, label):
        best = int(np.argmax(values))
        if self.wrong and len(values) > 1:
            rng = evidence.context.rng('pick', label)
            if rng.random() < self.wrong:
                return int(rng.choice([i for i in range(len(values)) if i != best]))
        return best
