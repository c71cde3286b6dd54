"""One image: candidates, scores, pairs."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Container

import numpy as np

from sa2va_dpo.datasets.ground_truth import size_problem
from sa2va_dpo.datasets.mask_io import read_image_rgb, read_mask
from sa2va_dpo.common.errors import InputError
from .candidates import Candidate, Context, mask_iou, pick_distinct
from .config import GenerateConfig
from .from_predictions import Predictions
from .judges import Evidence
from .pairing import PAIRINGS, Scored, select_pairs
from .sampler import Policies, PolicySampler
from .sources import GREEDY, GroundTruth


@dataclass(frozen=True)
class Item:
    """Files of one image: ``gt`` and ``field_of_view`` are ``None`` where there is none, ``inputs`` digests all of them."""

    image: Path
    gt: Path | None
    inputs: str
    field_of_view: Path | None = None


@dataclass(frozen=True)
class Pixels:
    """What was read of an item: uint8 [H, W, 3] and bool [H, W]."""

    image: np.ndarray
    gt: np.ndarray | None


@dataclass(frozen=True)
class Mined:
    """The journal entry of one image, and what has to be on disk before it is written.

    Attributes:
        entry: see ``preferences/report.py``; ``field_of_view`` says whether there is one.
        masks: (mask, file names relative to the data root).
        gt: ground truth.
    """

    entry: dict
    masks: list[tuple[np.ndarray, list[str]]]
    gt: np.ndarray | None


def read(item: Item) -> Pixels:
    """Read an item.

    Raises:
        InputError: unreadable, or image and ground truth differ in size.
    """
    image = read_image_rgb(item.image)
    gt = None if item.gt is None else read_mask(item.gt)
    if gt is not None:
        check_size(item.image, item.gt, image.shape[1::-1], gt.shape[::-1])
    return Pixels(image, gt)


def check_size(image: Path, gt: Path, image_size: tuple[int, int], gt_size: tuple[int, int]) -> None:
    """Raises InputError where (width, height) differ."""
    if image_size != gt_size:
        raise InputError(size_problem(image, gt, image_size, gt_size))


class Miner:
    """Turns images into candidates and pairs.

    Args:
        config: of the run.
        predictions: masks on disk, ``None`` in mode generate.
        policies: loaded checkpoints.
        held_out: names of images of which no candidate is made.
    """

    def __init__(self, config: GenerateConfig, predictions: Predictions | None, policies: Policies,
                 held_out: Container[str] = ()) -> None:
        self.config, self.predictions, self.policies, self.held_out = config, predictions, policies, held_out
        self.sources, self.judge = config.build_sources(), config.build_judge()
        self.strategy = PAIRINGS.module_dict[config.pairing]()

    def mine(self, item: Item, pixels: Pixels) -> Mined:
        """Pairs of one image, none of one that is held out; writes nothing."""
        config, stem = self.config, item.image.stem
        if item.image.name in self.held_out:
            return Mined(dict(image=item.image.name, stem=stem, inputs=item.inputs, records=[], duplicates=0, dropped_gap=0,
                              missing=[], candidates=[], field_of_view=item.field_of_view is not None), [], pixels.gt)
        context = Context(stem=stem, size=pixels.image.shape[:2], seed=config.seed, gt=pixels.gt, prompt=config.prompt)
        if self.predictions is None:
            context.sampler = PolicySampler(self.policies, pixels.image, stem, config.prompt, config.seed)
        kept, duplicates = self._candidates(context)
        ious, scores = self._scores(kept, context)
        scored = Scored(scores, [candidate.mask for candidate in kept],
                        Evidence(pixels.gt).reference(kept) if kept else np.zeros(context.size, bool))
        pairs, dropped = select_pairs(self.strategy, scored, config.min_iou_gap, config.max_pairs_per_image,
                                      config.balance)
        names: dict[int, list[str]] = {}
        records = []
        for pair in pairs:
            masks = [f'masks/{stem}_{role}_{pair[0]}_{pair[1]}.png' for role in ('chosen', 'rejected')]
            for index, name in zip(pair, masks):
                names.setdefault(index, []).append(name)
            records.append(self._record(item, pair, masks, kept, ious, scored))
        entry = dict(image=item.image.name, stem=stem, inputs=item.inputs, records=records, duplicates=duplicates,
                     dropped_gap=dropped, missing=context.missing, field_of_view=item.field_of_view is not None,
                     candidates=[dict(source=c.source, iou=_number(i), score=_number(s))
                                 for c, i, s in zip(kept, ious, scores)])
        return Mined(entry, [(kept[index].mask, files) for index, files in names.items()], pixels.gt)

    def _candidates(self, context: Context) -> tuple[list[Candidate], int]:
        config = self.config
        first = [GREEDY] if self.predictions is None else self.predictions.proposals(context)
        count = config.num_samples if self.predictions is None else len(first)
        if config.include_gt:
            first, count = [*first, *GroundTruth().proposals(context)], count + 1
        if self.predictions is not None and self.sources:
            count += config.num_samples
        sources = [(weight, list(source.proposals(context))) for weight, source in self.sources]
        return pick_distinct(first, sources, count, config.max_candidate_iou, context)

    def _scores(self, kept: list[Candidate], context: Context) -> tuple[list[float], list[float]]:
        """IoU with the ground truth (or its estimate) and the judge's score, unrounded: gaps are compared once, here."""
        def probability():
            if self.predictions is not None:
                return self.predictions.mean(context.stem, context.size)
            return context.sampler.probability()

        scores = [float(s) for s in self.judge.scores(kept, Evidence(context.gt, probability))] if kept else []
        if context.gt is None:
            return [float(np.clip(score, 0, 1)) for score in scores], scores
        if self.judge.name == 'IoU':
            return scores, scores
        return [mask_iou(candidate.mask, context.gt) for candidate in kept], scores

    def _record(self, item: Item, pair: tuple[int, int], masks: list[str], kept: list[Candidate], ious: list[float],
                scored: Scored) -> dict:
        chosen, rejected = (kept[index] for index in pair)
        differ = chosen.mask != rejected.mask
        record = dict(
            image=f'images/{item.image.name}', chosen_mask=masks[0], rejected_mask=masks[1],
            chosen_iou=ious[pair[0]], rejected_iou=ious[pair[1]], iou_gap=ious[pair[0]] - ious[pair[1]],
            prompt=self.config.prompt, chosen_source=chosen.source, rejected_source=rejected.source)
        if item.gt is not None:
            record['gt_mask'] = f'gt/{item.image.stem}.png'
        if self.judge.name != 'IoU':
            record.update(judge=self.judge.name, chosen_score=scored.scores[pair[0]], rejected_score=scored.scores[pair[1]])
        if item.gt is None:
            record['iou_estimated'] = True
        record.update(
            disagreement_pixels=int(np.count_nonzero(differ)), pixels=int(differ.size),
            chosen_agreement=round(float((chosen.mask == scored.reference)[differ].mean()), 6),
            rejected_over_segments=bool(scored.over_segments(pair[1])))
        return record


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
