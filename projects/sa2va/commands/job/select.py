"""Stage 5: which model is handed back, by validation Dice, and its export."""
from __future__ import annotations

import shutil
from pathlib import Path

from sa2va_dpo.commands.export import export_run, merge_adapter
from sa2va_dpo.common.console import say
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import new_directory
from sa2va_dpo.common.processes import pick_device
from sa2va_dpo.datasets.seg_dataset import AnnotatedMasks
from sa2va_dpo.engine.config import read_config
from sa2va_dpo.engine.run_folder import newest_whole, select
from sa2va_dpo.inference.input_size import mean_dice
from sa2va_dpo.models.checkpoint import OF_THE_BASE, is_adapter

from .card import write_card
from .folder import TRAINING
from .settings import JobSettings
from .state import JobState

TITLE = 'the model that is handed back'


def run(settings: JobSettings, state: JobState) -> JobState:
    """Fill ``best_checkpoint``, ``validation_dice``, ``exported_hf`` and ``exported_sam_size``; writes ``exported_hf``.

    Raises:
        InputError: the training folder lacks the checkpoint that its history names.
    """
    training = settings.work_dir / TRAINING
    if state.validates:
        choice, checkpoint = _by_validation(settings, state, training)
    else:
        choice, (checkpoint, damaged) = 'trained', newest_whole(training)
        if checkpoint is None or damaged:
            raise InputError(
                '; '.join(damaged) or f'{training}: training left no checkpoint: repeat the job with --overwrite'
            )
        say(f'no validation images: the last checkpoint is taken, {checkpoint.name}')
    exported = settings.work_dir / 'exported_hf'
    # An interrupted job may have left it.
    shutil.rmtree(exported, ignore_errors=True)
    if choice == 'trained':
        assert checkpoint is not None, 'only a checkpoint can be the trained choice'
        export_run(read_config(str(training / 'config.py'), []), checkpoint, exported)
    else:
        _hand_on(state.start if choice == 'start' else settings.model, exported)
    state.best_checkpoint = str(checkpoint) if choice == 'trained' else None
    state.exported_hf = str(exported)
    state.exported_sam_size = state.sam_size['own' if choice == 'handed_in' else 'chosen']
    state.view['exported'] = state.view.get('own' if choice == 'handed_in' else 'chosen')
    write_card(settings, state)
    return state


def _hand_on(untrained: str, exported: Path) -> None:
    """The start as what is handed back. An adapter is merged, as a trained one is: a result that is read without the
    checkpoint it was made from, whichever model it is."""
    if is_adapter(untrained):
        merge_adapter(untrained, exported)
        return
    with new_directory(exported) as folder:
        shutil.copytree(untrained, folder, dirs_exist_ok=True)
        for name, kept in OF_THE_BASE.items():
            if (folder / name).is_file():
                (folder / name).replace(folder / kept)


def _by_validation(settings: JobSettings, state: JobState, training: Path) -> tuple[str, Path | None]:
    found = select(training)
    checkpoint, start, best = found.checkpoint, found.start or 0.0, found.best or 0.0
    handed_in = start
    if state.resized:
        # The handed-in model is what the result is held against, whatever size it looks at.
        handed_in = mean_dice(settings.model, AnnotatedMasks(state.pairs), pick_device(), 'validation as handed in')
        say(f'validation Dice: as handed in {handed_in:.4f}, as training began {start:.4f}')
    choice = choose_export(best if checkpoint else None, start, handed_in)
    state.validation_dice = dict(start=max(start, handed_in), best=best)
    say('validation Dice: start {start:.4f}, best {best:.4f}'.format(**state.validation_dice))
    return choice, checkpoint


def choose_export(trained: float | None, start: float, handed_in: float) -> str:
    """Which model is handed back, by validation Dice: ``'trained'``, ``'start'`` (untrained, at the chosen input size)
    or ``'handed_in'``. Whatever is more work has to be better.

    Args:
        trained: of the best trained checkpoint; ``None`` when none beats the start.
    """
    scores = dict(handed_in=handed_in, start=start)
    if trained is not None:
        scores['trained'] = trained
    # The first of equal ones.
    return max(scores, key=lambda name: scores[name])
