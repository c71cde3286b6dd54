"""``rounds=dict(...)`` of a config: what a run that mines its own pairs is, checked before anything is read."""
from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Mapping

from sa2va_dpo.common.choices import JUDGES
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import PAIRS_FILE
from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT
from sa2va_dpo.preferences.config import GenerateConfig

REFERENCES = ('initial', 'round')
COMPARED = ('Consensus', 'Agreement', 'ExpectedIoU', 'PredictedIoU')


@dataclass(frozen=True)
class RoundSettings:
    """Attributes:
        count: stretches of equal length; pairs are mined anew before each of them.
        reference: ``'initial'`` (the policy before training) or ``'round'`` (the policy before the round).
        judge: of the unlabelled images: ``'expert'`` (people pick: ``scripts/review_pairs.py --pick``), ``'consensus'``
            (of mirrored views), ``'committee'`` (``members`` vote), ``'predictions'`` (the folders below
            ``predictions`` vote) or ``'iou'`` (ground truth picks in an expert's place: ``unlabelled_gt``, for
            studies).
        unlabelled: folder of images, or a text file that lists one path a line; None: there are none.
        unlabelled_gt: folder of their masks: who picks with ``judge='iou'``, a figure in the report with the others.
        labelled: images with masks: a JSON list below the data root (``dpo_annotations.json``, whose pairs must name
            their ``gt_mask``, or a list of image, mask and prompt), ``dict(images=FOLDER, gt=FOLDER)``, or None.
        labelled_share: share of the draws that are labelled images.
        labelled_first: so many rounds at the beginning mine and train on the labelled images alone: candidates of a
            policy that has not seen the domain are poor, and so is the best of them.
        include_gt: labelled images train against their mask: the ground truth is a candidate and always chosen. False:
            the policy's own candidates only, ranked by their IoU.
        num_samples, min_iou_gap, pairing, dice_tolerance, sources, max_candidate_iou, max_pairs_per_image, cells: as in
            ``GenerateConfig``; the gap is the judge's and never leaves a labelled image out while ``include_gt`` is on.
        wrong: ``judge='iou'`` only: share of the picks that fall on another candidate.
        members: ``judge='committee'``: checkpoint directories and folders of masks.
        predictions: ``judge='predictions'``: folder with one sub-folder of masks per method.
        clicks: ``judge='expert'``: how many images have to be decided before training goes on; None: all of them.
        guard: ``dict(metric, patience, tolerance)``: a round after which the validation metric is more than
            ``tolerance`` below what it was before is taken back, ``patience`` of them in a row end the run; None: every
            round stays.
        check_judge: hold a judge that nobody looks over against labelled images first, and refuse it where it fails.
        prompt: of every image.
        seed: of mining; None: the run's.
    """

    count: int = 4
    reference: str = 'initial'
    judge: str = 'iou'
    unlabelled: str | None = None
    unlabelled_gt: str | None = None
    labelled: str | Mapping[str, str] | None = PAIRS_FILE
    labelled_share: float = 0.5
    labelled_first: int = 0
    include_gt: bool = True
    num_samples: int = 6
    min_iou_gap: float = 0.02
    pairing: str = 'BestVsEach'
    dice_tolerance: float = 0.01
    sources: tuple | None = None
    max_candidate_iou: float = 0.98
    max_pairs_per_image: int | None = None
    cells: int | None = None
    wrong: float = 0.0
    members: tuple[str, ...] = ()
    predictions: str | None = None
    clicks: int | None = None
    guard: Mapping[str, Any] | None = field(default_factory=lambda: dict(metric='dice', patience=2, tolerance=0.0))
    check_judge: bool = True
    prompt: str = DEFAULT_PROMPT
    seed: int | None = None

    @classmethod
    def from_config(cls, given: Mapping) -> 'RoundSettings':
        """Raises InputError where a setting is unknown, wrong, or does not go with another."""
        known = {f.name for f in fields(cls)}
        for name in given:
            if name not in known:
                raise InputError(f'rounds.{name}: no such setting; there are {", ".join(sorted(known))}')
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        settings = cls(**values)
        settings._check()
        return settings

    def _check(self) -> None:
        def need(ok: bool, name: str, remedy: str) -> None:
            if not ok:
                raise InputError(f'rounds.{name}: {getattr(self, name)!r} {remedy}')

        for name, low in (('count', 1), ('num_samples', 2)):
            need(_whole(getattr(self, name), low), name, f'must be a whole number of at least {low}')
        for name in ('cells', 'clicks', 'max_pairs_per_image'):
            need(getattr(self, name) is None or _whole(getattr(self, name), 1), name,
                 'must be a whole number of at least 1, or None')
        need(self.seed is None or _whole(self.seed, 0), 'seed', 'must be a whole number from 0 on, or None')
        need(self.reference in REFERENCES, 'reference', f'must be one of {", ".join(REFERENCES)}')
        need(self.judge in JUDGES, 'judge', f'must be one of {", ".join(JUDGES)}')
        for name in ('labelled_share', 'wrong', 'dice_tolerance'):
            need(_between(getattr(self, name)), name, 'must be a number from 0 to 1')
        if self.unlabelled is not None and self.labelled is not None:
            need(0 < self.labelled_share < 1, 'labelled_share',
                 'must be above 0 and below 1 where there are images of both kinds; set labelled=None or '
                 'unlabelled=None to train on one kind')
        if self.unlabelled is None and self.labelled is None:
            raise InputError('rounds: neither labelled nor unlabelled images: set rounds.labelled or rounds.unlabelled')
        need(_whole(self.labelled_first, 0), 'labelled_first', 'must be a whole number from 0 on')
        if self.labelled_first:
            need(self.labelled is not None and self.unlabelled is not None, 'labelled_first',
                 'has a meaning only where there are labelled and unlabelled images: leave it out')
            need(self.labelled_first < self.count, 'labelled_first',
                 f'must be below rounds.count ({self.count}): the unlabelled images would never be trained on')
        if self.wrong and self.judge != 'iou':
            raise InputError(f'rounds.wrong: {self.wrong} is for studies with judge="iou", not for '
                             f'judge="{self.judge}"')
        if self.unlabelled is not None:
            for judge, name in (('iou', 'unlabelled_gt'), ('committee', 'members'), ('predictions', 'predictions')):
                if self.judge == judge and not getattr(self, name):
                    raise InputError(f'rounds.{name}: missing; judge="{judge}" needs it')
        if self.guard is not None:
            unknown = sorted(set(self.guard) - {'metric', 'patience', 'tolerance'})
            if unknown:
                raise InputError(f'rounds.guard.{unknown[0]}: no such setting; there are metric, patience, tolerance')
            need(_whole(self.guard.get('patience', 2), 1), 'guard', 'patience must be a whole number of at least 1')
            tolerance = self.guard.get('tolerance', 0.0)
            need(_between(tolerance), 'guard', 'tolerance must be a number from 0 to 1')

    # -- what is mined ----------------------------------------------------------------------------------------------

    def config(self, **more) -> GenerateConfig:
        """A mining run of this one's settings; ``more`` says which images, where to, and by which policy."""
        return GenerateConfig(
            mode='generate', num_samples=self.num_samples, prompt=self.prompt, sources=self.sources, link=True,
            max_candidate_iou=self.max_candidate_iou, max_pairs_per_image=self.max_pairs_per_image,
            dice_tolerance=self.dice_tolerance,
            val_fraction=0.0, test_fraction=0.0, **more)

    def labelled_config(self, **more) -> GenerateConfig:
        """Pairs of labelled images: their mask against the policy's candidates, or those among themselves."""
        if self.include_gt:
            return self.config(include_gt=True, pairing='BestVsEach', min_iou_gap=0.0, compared=self.compared(), **more)
        return self.config(pairing=self.pairing, min_iou_gap=self.min_iou_gap, cells=self.cells,
                           compared=self.compared(), **more)

    def check_config(self, **more) -> GenerateConfig:
        """Candidates of labelled images that are not trained on, for what judges say of them."""
        return self.config(pairing='BestVsWorst', min_iou_gap=0.0, compared=self.compared(), **more)

    def unlabelled_config(self, **more) -> GenerateConfig:
        """Pairs of unlabelled images by the judge of this run (all but ``'expert'``)."""
        return self.config(judge=(self.judge_spec(),), pairing=self.pairing, min_iou_gap=self.min_iou_gap,
                           cells=self.cells, **more)

    def candidates_config(self, **more) -> GenerateConfig:
        """Candidates for people."""
        return self.config(judge=('PredictedIoU',), **more)

    def judge_spec(self) -> str | dict:
        """The judge of unlabelled images as ``GenerateConfig.judge`` takes it."""
        if self.judge == 'iou':
            return dict(type='Pick', wrong=self.wrong)
        return 'Consensus' if self.judge == 'consensus' else self._committee()

    def judge_name(self) -> str:
        """Its name in reports."""
        return dict(iou='Pick', consensus='Consensus', expert='expert').get(self.judge, 'Committee')

    def compared(self) -> tuple:
        """Judges whose ranking is held against IoU wherever it is known."""
        votes = self.judge in ('committee', 'predictions') and self._members()
        return (*COMPARED, self._committee()) if votes else COMPARED

    @property
    def compares_own_masks(self) -> bool:
        """Whether judges of labelled images ask the policy alone; of other files it is not known what they were."""
        return not any(isinstance(judge, dict) for judge in self.compared())

    @property
    def unwatched(self) -> bool:
        """Whether nobody looks at what the judge says."""
        return self.unlabelled is not None and self.judge in ('consensus', 'committee', 'predictions')

    def _members(self) -> tuple[str, ...]:
        if self.judge == 'committee':
            return self.members
        if self.predictions is None:
            return ()
        folder = Path(self.predictions)
        if not folder.is_dir():
            raise InputError(f'rounds.predictions: {folder}: no such folder; it must hold one sub-folder of masks per '
                             'method')
        found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith('.'))
        if not found:
            raise InputError(f'rounds.predictions: {folder}: holds no sub-folder: put the masks of every method into '
                             'one')
        return tuple(str(path) for path in found)

    def _committee(self) -> dict:
        for member in self._members():
            if not Path(member).is_dir():
                raise InputError(f'rounds.members: {member}: no such folder: name checkpoint directories or folders '
                                 'of masks')
        members = {True: [], False: []}
        for member in self._members():
            members[(Path(member) / 'config.json').is_file()].append(member)
        return dict(type='Committee', checkpoints=tuple(members[True]), folders=tuple(members[False]))


def boundaries(max_iters: int, count: int) -> list[int]:
    """First iteration of every round, and the end of the last.

    Raises:
        InputError: fewer iterations than rounds.
    """
    if max_iters < count:
        raise InputError(f'rounds.count: {count} rounds of {max_iters} iterations leave some without a step: lower '
                         'it, or train longer')
    return [math.ceil(max_iters * r / count) for r in range(count + 1)]


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _between(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
