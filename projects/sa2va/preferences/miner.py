"""One image: candidates, scores, pairs."""
from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Container

import numpy as np

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import hash_file
from sa2va_dpo.datasets.ground_truth import size_problem
from sa2va_dpo.datasets.mask_io import read_image_rgb, read_mask
from sa2va_dpo.datasets.samples import SampleMaker, View
from sa2va_dpo.evaluation.counts import disagreement, mask_iou

from .candidates import Candidate, Context, pick_distinct
from .composite import cell_composite, component_pairs
from .config import GenerateConfig
from .from_predictions import Predictions
from .judges import Evidence
from .pairing import Scored, select_pairs
from .sampler import Policies, PolicySampler
from .sources import GREEDY, GroundTruth


@dataclass(frozen=True)
class Item:
    """Files of one image: ``gt`` and ``field_of_view`` are ``None`` where there is none, ``inputs`` digests all of
    them."""

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
        frozen: makes samples from caches of what is frozen in the run's policy.
        held_out: names of images of which no candidate is made.
    """

    def __init__(self, config: GenerateConfig, predictions: Predictions | None, policies: Policies,
                 frozen: SampleMaker | None = None, held_out: Container[str] = ()) -> None:
        self.config, self.predictions, self.policies, self.frozen = config, predictions, policies, frozen
        self.held_out = held_out
        self.sources, self.judge = config.build_sources(), config.build_judge()
        self.compared = config.build_compared()
        self.strategy = config.build_pairing()

    def mine(self, item: Item, pixels: Pixels) -> Mined:
        """Pairs of one image, none of one that is held out; writes nothing."""
        config, stem = self.config, item.image.stem
        if item.image.name in self.held_out:
            return Mined(
                dict(
                    image=item.image.name,
                    stem=stem,
                    inputs=item.inputs,
                    records=[],
                    duplicates=0,
                    dropped_gap=0,
                    missing=[],
                    candidates=[],
                    field_of_view=item.field_of_view is not None,
                ),
                [],
                pixels.gt,
            )
        context, evidence = self._look(item, pixels)
        kept, duplicates = self._candidates(context)
        everything = [*kept, *self._composite(kept, evidence)]
        ious, scores = self._scores(everything, evidence)
        if len(everything) > len(kept) and self.judge.decides:
            scores = [float(index == len(kept)) for index in range(len(everything))]
        scored = Scored(scores, [candidate.mask for candidate in everything],
                        evidence.reference(everything) if everything else np.zeros(context.size, bool))
        strategy = self.strategy
        if config.pairing == 'Components':
            everything, ious = self._components(scored, everything, ious, evidence)
        elif len(everything) > len(kept):
            strategy = partial(_one_vs_each, len(kept))
        pairs, dropped = select_pairs(strategy, scored, config.min_iou_gap, config.max_pairs_per_image, config.balance)
        names: dict[int, list[str]] = {}
        records = []
        for pair in pairs:
            masks = [f'masks/{stem}_{role}_{pair[0]}_{pair[1]}.png' for role in ('chosen', 'rejected')]
            for index, name in zip(pair, masks):
                names.setdefault(index, []).append(name)
            records.append(self._record(item, pair, masks, everything, ious, scored))
        entry = dict(image=item.image.name, stem=stem, inputs=item.inputs, records=records, duplicates=duplicates,
                     dropped_gap=dropped, missing=context.missing, diversity=_diversity(kept),
                     field_of_view=item.field_of_view is not None,
                     candidates=[dict(source=c.source, iou=_number(i), score=_number(s), **others)
                                 for c, i, s, others in zip(kept, ious, scores, self._compare(kept, evidence))])
        return Mined(entry, [(everything[index].mask, files) for index, files in names.items()], pixels.gt)

    def collect(self, item: Item, pixels: Pixels) -> Mined:
        """The candidates of one image for somebody to pick from; no judge, no pair, writes nothing."""
        context, _ = self._look(item, pixels)
        kept, duplicates = self._candidates(context)
        names = [f'candidates/{item.image.stem}_{k}.png' for k in range(len(kept))]
        entry = dict(
            image=item.image.name,
            stem=item.image.stem,
            inputs=item.inputs,
            records=[],
            duplicates=duplicates,
            missing=context.missing,
            diversity=_diversity(kept),
            files=names,
            candidates=[
                dict(
                    mask=name,
                    source=c.source,
                    **({} if c.predicted_iou is None else dict(predicted_iou=round(c.predicted_iou, 6))),
                )
                for name, c in zip(names, kept)
            ],
        )
        return Mined(entry, [(c.mask, [name]) for name, c in zip(names, kept)], None)

    def _look(self, item: Item, pixels: Pixels) -> tuple[Context, Evidence]:
        config, stem = self.config, item.image.stem
        context = Context(stem=stem, size=pixels.image.shape[:2], seed=config.seed, gt=pixels.gt, prompt=config.prompt)
        if self.predictions is None:
            context.sampler = PolicySampler(self.policies, pixels.image, stem, config.prompt, config.seed,
                                            self._cached(item, pixels) if self.frozen else None)

        def probability():
            if self.predictions is not None:
                return self.predictions.mean(context.stem, context.size)
            return context.sampler.probability()

        return context, Evidence(pixels.gt, probability, context)

    def _cached(self, item: Item, pixels: Pixels) -> Callable[[bool, bool], dict | None]:
        def sample(horizontal: bool, vertical: bool) -> dict | None:
            view = View(partial(hash_file, item.image), lambda: pixels.image, self.config.prompt, horizontal, vertical)
            return self.frozen.if_predicted(view, pixels.image.shape[:2])

        return sample

    def _composite(self, kept: list[Candidate], evidence: Evidence) -> list[Candidate]:
        """The best of every cell as one more candidate, unless it is one that is there already."""
        if self.config.cells is None or len(kept) < 2:
            return []
        belief = self.judge.belief(kept, evidence)
        if not np.isfinite(belief).all():
            return []
        mask = cell_composite([c.mask for c in kept], belief, self.config.cells,
                              lambda values, label: self.judge.pick(values, evidence, label))
        return (
            []
            if any(np.array_equal(mask, c.mask) for c in kept)
            else [Candidate(mask, f'composite:{self.config.cells}')]
        )

    def _components(self, scored: Scored, everything: list[Candidate], ious: list[float],
                    evidence: Evidence) -> tuple[list[Candidate], list[float]]:
        """Adds to ``scored`` the masks and pairs of the components on which the best differs from the greedy mask."""
        belief = self.judge.belief(everything, evidence) if everything else np.array(np.nan)
        if len(scored.order) < 2 or not np.isfinite(belief).all():
            return everything, ious
        best = scored.order[0]
        second = 0 if best else scored.order[1]
        pairs = component_pairs(everything[best].mask, everything[second].mask, belief)
        made = [Candidate(pair.other, f'component of {everything[second].source}') for pair in pairs]
        more, _ = self._scores([*everything, *made], evidence)
        for index, pair in enumerate(pairs, len(everything)):
            key = (best, index) if pair.best_is_right else (index, best)
            scored.composed[key] = (round(pair.agreement, 6), round(1 - pair.agreement, 6))
        scored.masks = [*scored.masks, *(c.mask for c in made)]
        scored.scores = [*scored.scores, *[float('nan')] * len(made)]
        return [*everything, *made], more

    def _compare(self, kept: list[Candidate], evidence: Evidence) -> list[dict]:
        """What judges that decide nothing here would have said of every candidate."""
        # The ground truth among the candidates would tell those that go by agreement where it is.
        asked = [index for index, candidate in enumerate(kept) if candidate.source != 'ground_truth']
        notes: list[dict] = [{} for _ in kept]
        if self.compared and asked:
            columns = {judge.name: judge.scores([kept[i] for i in asked], evidence) for judge in self.compared}
            for place, index in enumerate(asked):
                notes[index] = dict(
                    compared={name: _number(round(float(column[place]), 6)) for name, column in columns.items()}
                )
        return notes

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

    def _scores(self, kept: list[Candidate], evidence: Evidence) -> tuple[list[float], list[float]]:
        """IoU with the ground truth (or its estimate) and the judge's score, unrounded: gaps are compared once,
        here."""
        scores = [float(s) for s in self.judge.scores(kept, evidence)] if kept else []
        if evidence.gt is None:
            return [float(np.clip(score, 0, 1)) for score in scores], scores
        if self.judge.name == 'IoU':
            return scores, scores
        return [mask_iou(candidate.mask, evidence.gt) for candidate in kept], scores

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
        judge = self.config.pairing if pair in scored.composed else self.judge.name
        if judge != 'IoU':
            chosen_score, rejected_score = scored.pair_scores(pair)
            record.update(judge=judge, chosen_score=chosen_score, rejected_score=rejected_score)
        if item.gt is None:
            record['iou_estimated'] = True
        record.update(
            disagreement_pixels=int(np.count_nonzero(differ)), pixels=int(differ.size),
            chosen_agreement=round(float((chosen.mask == scored.reference)[differ].mean()), 6),
            rejected_over_segments=bool(scored.over_segments(pair[1])))
        return record


def _one_vs_each(index: int, scored: Scored) -> list[tuple[int, int]]:
    """The composite against every candidate, largest gap first."""
    others = [other for other in scored.order[::-1] if other != index]
    return [(index, other) for other in others] if index in scored.order else []


def _diversity(kept: list[Candidate]) -> float | None:
    """How far the candidates are apart; None below two."""
    return round(disagreement([c.mask for c in kept]), 6) if len(kept) > 1 else None


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
