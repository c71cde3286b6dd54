"""``MODEL_CARD.md`` of what a job hands back: written with the export, and again once it was tested."""
from __future__ import annotations

from pathlib import Path

from sa2va_dpo.common.files import write_text
from sa2va_dpo.engine.config import read_config
from sa2va_dpo.models.checkpoint import CARD_FILE
from sa2va_dpo.reporting.comparison import job_verdict, read_lines
from sa2va_dpo.reporting.model_card import Tested, folder_name, run_card, sentence, untrained_card

from .folder import TRAINING
from .settings import JobSettings
from .state import JobState


def write_card(settings: JobSettings, state: JobState) -> None:
    """Write the card into the exported directory, with the figures of the test where there was one."""
    exported, tested = Path(state.exported_hf), _tested(settings, state)
    if state.best_checkpoint is not None:
        config = read_config(str(settings.work_dir / TRAINING / 'config.py'))
        text = run_card(config, state.best_checkpoint, settings.work_dir.resolve().name, base=settings.model,
                        tested=tested, origin=_origin(settings, state))
    else:
        resized = state.exported_sam_size not in (None, state.sam_size.get('own'))
        why = ('The checkpoint that was handed in: no trained one was better on the validation images, and its weights '
               'are as they were' + ('; only its SAM2 input has another size.' if resized else '.'))
        found = state.validation_dice
        validation = '' if found is None else (
            'On the validation images: Dice {start:.4f}; the best trained checkpoint: Dice {best:.4f}.'.format(**found))
        text = untrained_card(exported, settings.work_dir.resolve().name, base=settings.model, why=why, tested=tested,
                              validation=validation)
    write_text(exported / CARD_FILE, text)


def _tested(settings: JobSettings, state: JobState) -> Tested | None:
    if state.after is None:
        return None
    folder = settings.work_dir
    found, after, _ = read_lines(folder / 'test_after', folder / 'test_before',
                                 None if state.resized is None else folder / 'test_resized', settings.seed)
    verdict = job_verdict(dict(validation_dice=state.validation_dice, best_checkpoint=state.best_checkpoint,
                               sam_size=state.sam_size, exported_sam_size=state.exported_sam_size), found, len(after))
    return Tested(found, len(after), _images(settings), sentence(verdict))


def _images(settings: JobSettings) -> str:
    if settings.images is not None:
        return f'`{folder_name(settings.images)}`'
    return 'the drawn demo set' if settings.pairs is None else f'`{folder_name(settings.pairs)}`'


def _origin(settings: JobSettings, state: JobState) -> list[str]:
    """Where the data came from and how they were split; folders by their names."""
    if settings.pairs is not None:
        found = [f'Pairs that existed: `{folder_name(settings.pairs)}`.']
    elif settings.images is not None:
        masks = '' if settings.gt is None else f', masks of `{folder_name(settings.gt)}`'
        found = [f'Images of `{folder_name(settings.images)}`{masks}.']
    elif state.images or state.test:
        found = [f'The drawn demo set (seed {settings.seed}): no photograph of a patient.']
    else:
        found = []
    if settings.pairs is None:
        found.append(f'Split by patient: {len(state.training)} images for training, {len(state.validation)} for '
                     f'validation, {len(state.test)} for the test.')
    if settings.unlabelled is not None:
        found.append(f'{len(state.unlabelled)} images without masks of `{folder_name(settings.unlabelled)}`, judged by '
                     f'{settings.judge}.')
    return found
