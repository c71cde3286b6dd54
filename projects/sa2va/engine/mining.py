"""One round's pairs, mined from the policy as it is, in the processes that train it."""
from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

import numpy as np
from torch import nn

from sa2va_dpo.caching.fingerprint import tensors_digest
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import PAIRS_FILE, read_pairs, write_pairs
from sa2va_dpo.datasets.samples import SampleMaker
from sa2va_dpo.models.trainable import in_eval_mode
from sa2va_dpo.preferences.candidate_set import make_candidates
from sa2va_dpo.preferences.earlier import EarlierPairs
from sa2va_dpo.preferences.generate import generate_pairs
from sa2va_dpo.preferences.rank_agreement import Agreement

from .round_images import MaskedImages
from .round_settings import RoundSettings


class PicksWanted(Exception):
    """People have to pick before the run can go on.

    Attributes:
        root: data root with their candidates.
        decided, wanted: images.
    """

    def __init__(self, root: Path, decided: int, wanted: int) -> None:
        super().__init__(f'{root}: {decided} of {wanted} images are decided')
        self.root, self.decided, self.wanted = root, decided, wanted


@dataclass
class Images:
    """What a run mines.

    Attributes:
        labelled: to train on.
        unlabelled: to train on.
        check: labelled, held out; judges are held against them, too.
    """

    labelled: MaskedImages
    unlabelled: list[Path]
    check: MaskedImages


@dataclass
class Mined:
    """Attributes:
        labelled, unlabelled: data roots; None where no pair came out.
        record: for ``rounds.json``.
    """

    labelled: Path | None = None
    unlabelled: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)


def policy_digest(model: nn.Module) -> str:
    """Of the values of all trained tensors: which state of the policy made the candidates."""
    return tensors_digest(sorted((name, p) for name, p in model.named_parameters() if p.requires_grad))


def round_seed(seed: int, number: int) -> int:
    """Of the draws of a round's mining.

    Args:
        seed: ``rounds.seed``, or the run's.
        number: of the round.
    """
    return seed * 1000 + number


class RoundMiner:
    """Mines rounds.

    Args:
        settings: of the run.
        images: of the run.
        checkpoint: directory from which the run started.
        preprocessor: of that checkpoint.
        seed: of the run.
        cache: kind -> folder of results of frozen parts that need not be computed.
        log: takes lines.
        data_root: of the run; its pairs are the first round's where mining would only make the same again.
    """

    def __init__(self, settings: RoundSettings, images: Images, checkpoint: str, preprocessor, seed: int,
                 cache: Mapping[str, str] | None, log, data_root: str | Path | None = None) -> None:
        self.settings, self.images, self.log = settings, images, log
        self.checkpoint, self.preprocessor = checkpoint, preprocessor
        self.seed = seed if settings.seed is None else settings.seed
        self.data_root = None if data_root is None else Path(data_root)
        kinds = {kind: folder for kind, folder in (cache or {}).items() if kind != 'reference_low_res'}
        self.frozen = SampleMaker(preprocessor, kinds) if kinds else None

    def mine(self, number: int, model: nn.Module, folder: Path, phase=lambda name: None) -> Mined:
        """The pairs of a round; an interrupted call is taken up by the next.

        Args:
            model: with the policy as its ``policy``.
            folder: of the round.
            phase: told what is done.

        Raises:
            PicksWanted: people have not picked yet.
            InputError: the judge is not to be trusted, or an image cannot be read.
        """
        started = time.time()
        self.policy, self.digest, self.number, self.folder = model.policy, policy_digest(model), number, folder
        self.device = str(next(model.parameters()).device)
        mined, unlabelled = Mined(record=dict(policy=self.digest)), self.unlabelled_in(number)
        with in_eval_mode(model):
            agreements: dict[str, list[float]] = {}
            if self.images.check and unlabelled:
                report = self._pairs(self.settings.check_config, 'check', dict(self.images.check))
                _collect(agreements, report)
            if self.images.labelled:
                # Later rounds draw other perturbations.
                earlier = None if number or self.data_root is None else EarlierPairs(self.data_root)
                report = self._pairs(self.settings.labelled_config, 'labelled', dict(self.images.labelled), earlier)
                if earlier is not None and earlier.refused is not None:
                    self.log(_taken_over(report, earlier))
                _collect(agreements, report)
                mined.record['labelled'] = dict(_statistics(report, folder / 'labelled', scored=False),
                                                taken_over=report['taken_over'])
                mined.labelled = folder / 'labelled' if report['train_pairs'] else None
            phase('labelled mined')
            found = {name: Agreement.of(taus) for name, taus in agreements.items()}
            mined.record['judge_agreement'] = {name: agreement.to_json() for name, agreement in found.items()}
            for name, agreement in found.items():
                self.log(f'round {number}: {name} ranks candidates as IoU does with tau {agreement}')
            if unlabelled:
                if self.settings.unwatched and self.settings.check_judge:
                    self._check(found)
                mined.record['judge'] = self.settings.judge
                report = self._people(mined) if self.settings.judge == 'expert' else self._unlabelled(mined)
                mined.unlabelled = folder / 'unlabelled' if report['train_pairs'] else None
        mined.record['seconds'] = round(time.time() - started, 1)
        phase('mined')
        return mined

    def unlabelled_in(self, number: int) -> int:
        """How many unlabelled images a round has."""
        # Where all labelled images turned out to be held out, there is nothing to begin with.
        waits = number < self.settings.labelled_first and self.images.labelled
        return 0 if waits else len(self.images.unlabelled)

    def _shared(self, name: str) -> dict[str, Any]:
        # Every round draws other perturbations, also from a policy that was taken back.
        return dict(output_dir=str(self.folder / name), model_path=self.checkpoint, policy_digest=self.digest,
                    device=self.device, seed=round_seed(self.seed, self.number))

    def _pairs(self, make, name: str, truths: Mapping[Path, Path], earlier: EarlierPairs | None = None) -> dict:
        images = list(truths)
        config = make(images_dir=str(images[0].parent), gt_dir=str(truths[images[0]].parent), **self._shared(name))
        return generate_pairs(config, self.policy, self.preprocessor, images, overwrite=True, allow_empty=True,
                              frozen=self.frozen, truths=truths, quiet=True, earlier=earlier)

    def _unlabelled(self, mined: Mined) -> dict:
        images, settings = self.images.unlabelled, self.settings
        config = settings.unlabelled_config(images_dir=str(images[0].parent), gt_dir=settings.unlabelled_gt,
                                            **self._shared('unlabelled'))
        report = generate_pairs(config, self.policy, self.preprocessor, images, overwrite=True, allow_empty=True,
                                frozen=self.frozen, quiet=True)
        mined.record['unlabelled'] = _statistics(report, self.folder / 'unlabelled', scored=settings.judge != 'iou')
        return report

    def _people(self, mined: Mined) -> dict:
        """Candidates for people, and the pairs of what they picked."""
        from sa2va_dpo.review.picks import pick_statistics, picks_to_records, read_candidates, read_picks

        images, root = self.images.unlabelled, self.folder / 'unlabelled'
        config = self.settings.candidates_config(images_dir=str(images[0].parent), gt_dir=None,
                                                 **self._shared('unlabelled'))
        report = make_candidates(config, images, self.policy, self.preprocessor, self.frozen)
        # Not of all images: where the candidates are the same there is nothing to pick.
        wanted = read_candidates(root).wanted(self.settings.clicks)
        picks = read_picks(root, empty=True)
        decided = len(picks.agreed) + len(picks.conflicts)
        if decided < wanted:
            raise PicksWanted(root, decided, wanted)
        records = picks_to_records(root, picks)
        write_pairs(root / PAIRS_FILE, records)
        usable = len({record.image for record in records})
        mined.record['unlabelled'] = dict(images=len(images), pairs=len(records), usable_share=usable / len(images),
                                          diversity=report['diversity'], picks=pick_statistics(picks))
        return dict(train_pairs=len(records))

    def _check(self, found: Mapping[str, Agreement]) -> None:
        """Raises InputError where the judge of this run does not rank as labels do."""
        name = self.settings.judge_name()
        agreement = next((a for key, a in found.items() if key == name), None)
        if agreement is None:
            self.log(f'round {self.number}: nothing labelled to hold {name} against: nobody knows whether its word is '
                     'any good')
        elif not agreement.trusted:
            raise InputError(
                f'rounds.judge="{self.settings.judge}": refused in round {self.number}: on labelled images it does '
                'not rank '
                f'candidates as IoU does, tau {agreement}: let people pick (judge="expert"), label more images, or set '
                f'rounds.check_judge=False to trust it all the same')


def _taken_over(report: Mapping, earlier: EarlierPairs) -> str:
    images, taken = report['images'], report['taken_over']
    if taken:
        return (f'round 0: pairs of {taken} of {images} labelled images are those of {earlier.root}, mined from this '
                'very state of the policy')
    why = earlier.refused or 'of other images or masks, or not what they were when they were made'
    return f'round 0: the pairs of {earlier.root} are not taken over ({why}): mined anew'


def _collect(agreements: dict[str, list[float]], report: Mapping) -> None:
    for name, found in report.get('judge_agreement', {}).items():
        agreements.setdefault(name, []).extend(found['taus'])


def _statistics(report: Mapping, root: Path, scored: bool) -> dict[str, Any]:
    """What a report says about a round's images: how good candidates are by the judge and, where it is known, by IoU.

    Args:
        scored: the judge's scores say how good a mask is; a pick says which is best.
    """
    images = report['images']
    record = dict(images=images, pairs=report['train_pairs'],
                  usable_share=1 - len(report['images_without_pairs']) / images if images else 0.0,
                  diversity=report['diversity'],
                  candidates=report['candidates_per_image'] and report['candidates_per_image']['median'])
    if scored:
        record.update({name: report[name] for name in ('greedy_score', 'best_score')})
    if report['chosen_agrees_with_ground_truth'] is not None:
        chosen: dict[str, list[float]] = {}
        for pair in read_pairs(root / PAIRS_FILE, root):
            chosen.setdefault(pair.image, []).append(pair.chosen_iou)
        record.update(greedy_iou=report['greedy_iou'], best_iou=report['best_candidate_iou'],
                      chosen_iou=float(np.mean([np.mean(ious) for ious in chosen.values()])))
    return record
