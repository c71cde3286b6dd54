"""Stage 3: the preference pairs, made from the start's own candidates or found on disk."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sa2va_dpo.common.console import say
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import read_json
from sa2va_dpo.datasets.annotations import PAIRS_FILE, VAL_FILE, read_pairs, read_segs
from sa2va_dpo.engine.mining import round_seed
from sa2va_dpo.preferences.generate import GenerateConfig, generate_pairs

from .rounds import rounds_of_config
from .settings import JobSettings
from .state import JobState

TITLE = 'preference pairs'


def run(settings: JobSettings, state: JobState) -> JobState:
    """Fill ``pairs``, ``train_pairs``, ``train_images`` and ``validates``.

    Raises:
        InputError: no pair came out, or the pairs on disk are bad.
    """
    if not state.images and settings.pairs is None:
        say('no image has a mask: nothing can be validated or tested, the last checkpoint will be taken unseen')
        state.pairs, state.validates = str(settings.work_dir / 'pairs'), False
        return state
    if settings.pairs is not None:
        root = Path(settings.pairs)
        records = read_pairs(root / PAIRS_FILE, root)
        state.train_pairs, state.train_images = len(records), len({record.image for record in records})
        say(f'preference pairs that exist: {state.train_pairs} of {state.train_images} images in {root}')
        state.pairs = str(root)
        state.validates = (root / VAL_FILE).is_file() and bool(
            read_json(root / VAL_FILE, 'generate the pairs again', kind=list)
        )
        if not state.validates:
            say(
                f'{root / VAL_FILE}: names no image: training runs without validation, and the last checkpoint is '
                f'taken unseen'
            )
        return state
    root = settings.work_dir / 'pairs'
    report = generate_pairs(_what(settings, state, root), images=[Path(item.image) for item in state.images])
    state.pairs, state.train_pairs, state.train_images = str(root), report['train_pairs'], report['train_images']
    _check_validation(root, state)
    return state


def _what(settings: JobSettings, state: JobState, root: Path) -> GenerateConfig:
    """The pairs of this job; those of its first round where it has rounds, so that they need not be mined twice."""
    places: dict[str, Any] = dict(
        images_dir=str(Path(state.images[0].image).parent), gt_dir=state.gt_dir, output_dir=str(root),
        model_path=state.start
    )
    split: dict[str, Any] = dict(
        val_fraction=settings.val_fraction, test_fraction=0.0, group_regex=settings.group_regex
    )
    if settings.mines_in_rounds and (rounds := rounds_of_config(settings, state)).compares_own_masks:
        config = rounds.labelled_config(
            seed=round_seed(settings.seed if rounds.seed is None else rounds.seed, 0), **places)
        return replace(config, link=False, split_seed=settings.seed, **split)
    asked: dict[str, Any] = {'prompt': settings.prompt} if settings.prompt else {}
    return GenerateConfig(mode='generate', num_samples=settings.num_samples, min_iou_gap=settings.min_iou_gap,
                          max_pairs_per_image=settings.max_pairs_per_image, seed=settings.seed,
                          include_gt=settings.gt_candidate, **places, **split, **asked)


def _check_validation(root: Path, state: JobState) -> None:
    """The generator must have held out the images that the input size was not chosen on."""
    held_out = {Path(record.image).name for record in read_segs(root / VAL_FILE, root)}
    expected = {Path(path).name for path in state.validation}
    if held_out != expected:
        raise InputError(
            f'{root / VAL_FILE}: holds out {len(held_out)} images, the job {len(expected)} others: was it edited? '
            'Repeat the command with --overwrite'
        )
