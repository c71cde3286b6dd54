"""What is handed back."""
import json
import shutil
from pathlib import Path

import pytest
import torch

from sa2va_dpo.commands.job import select
from sa2va_dpo.commands.job.select import choose_export
from sa2va_dpo.commands.job.state import JobState
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.models.checkpoint.layout import ADAPTER_BASE


@pytest.mark.parametrize('trained, start, handed_in, choice', [
    (.7, .6, .6, 'trained'), (.6, .6, .6, 'handed_in'), (None, .6, .6, 'handed_in'),
    (None, .7, .6, 'start'), (None, .6, .7, 'handed_in'), (.65, .6, .7, 'handed_in'), (.8, .6, .7, 'trained')])
def test_what_is_handed_back(trained, start, handed_in, choice):
    assert choose_export(trained, start, handed_in) == choice


@pytest.fixture
def finished(in_an_empty_folder, settings_of, monkeypatch):
    """A job whose training left a history; ``finished(dice, best)`` selects and gives the state."""
    work_dir = in_an_empty_folder / 'w'
    (work_dir / 'training').mkdir(parents=True)
    (work_dir / 'base').mkdir()
    (work_dir / 'base/config.json').write_text('{}')
    monkeypatch.setattr(select, 'read_config', lambda path, options: path)
    monkeypatch.setattr(
        select, 'export_run', lambda cfg, checkpoint, output: shutil.copytree(checkpoint.parent / 'model', output)
    )
    # What is in it, test_card.py tells.
    monkeypatch.setattr(select, 'write_card', lambda settings, state: None)
    (work_dir / 'training/model').mkdir()

    def run(dice, best=None, **changes):
        history = [dict(iter=20 * i, dice=value) for i, value in enumerate(dice)]
        if best is not None:
            (work_dir / 'training' / f'best_dice_iter_{best}.pth').write_text(str(best))
            history[best // 20].update(checkpoint=f'best_dice_iter_{best}.pth')
        (work_dir / 'training/val_history.json').write_text(json.dumps(history))
        state = JobState(start='w/base', pairs='w/pairs', sam_size=dict(own=640, chosen=640), **changes)
        return select.run(settings_of('--work-dir', 'w', '--model', 'w/base'), state)

    run.training = work_dir / 'training'
    return run


def test_the_history_names_the_best_not_the_last_file(finished):
    # Sorted by name, another run's best_dice_iter_80 would win.
    (finished.training / 'best_dice_iter_80.pth').touch()
    state = finished([.5, .6, .7, .65], best=40)
    assert state.best_checkpoint == 'w/training/best_dice_iter_40.pth'
    assert state.validation_dice == dict(start=.5, best=.7) and state.exported_sam_size == 640


def test_what_only_equals_the_start_is_not_better(finished):
    state = finished([.6, .6, .5], best=20)
    assert state.best_checkpoint is None and state.validation_dice == dict(start=.6, best=.6)
    assert [path.name for path in Path(state.exported_hf).iterdir()] == ['config.json'], (
        'the start itself is handed back'
    )


def test_what_the_start_says_about_itself_goes_on_as_the_base_s(finished):
    for name in ('README.md', 'MODEL_CARD.md'):
        (finished.training.parent / 'base' / name).write_text(name)
    exported = Path(finished([.6, .5]).exported_hf)
    assert {path.name: path.read_text() for path in exported.iterdir()} == {
        'config.json': '{}', 'BASE_README.md': 'README.md', 'BASE_MODEL_CARD.md': 'MODEL_CARD.md'}


def test_an_adapter_that_training_did_not_better_is_handed_back_merged(finished, monkeypatch):
    """As a trained one is: the result must not need the checkpoint that the adapter belongs on."""
    asked = []

    def merge(adapter, output):
        asked.append(adapter)
        Path(output).mkdir()
        (Path(output) / 'model.safetensors').touch()

    monkeypatch.setattr(select, 'merge_adapter', merge)
    (finished.training.parent / 'base' / ADAPTER_BASE).write_text('{}')
    state = finished([.6, .5])
    assert asked == ['w/base'] and [path.name for path in Path(state.exported_hf).iterdir()] == ['model.safetensors']


def test_an_export_that_was_cut_short_is_made_anew(finished):
    (finished.training.parent / 'exported_hf').mkdir()
    (finished.training.parent / 'exported_hf/half').touch()
    assert [path.name for path in Path(finished([.6, .5]).exported_hf).iterdir()] == ['config.json']


def test_a_checkpoint_that_is_gone_is_named(finished):
    finished([.5, .7], best=20)
    (finished.training / 'best_dice_iter_20.pth').unlink()
    (finished.training / 'best_dice_iter_80.pth').touch()
    with pytest.raises(InputError, match='best_dice_iter_20.pth: missing, val_history.json names it'):
        select.select(finished.training)


def test_without_validation_the_last_checkpoint_is_taken_if_there_is_one(finished):
    with pytest.raises(InputError, match='left no checkpoint'):
        finished([.5], validates=False)
    for step in (9, 80):
        torch.save(dict(step=step), finished.training / f'iter_{step}.pth')
    state = finished([.5], validates=False)
    assert state.best_checkpoint == 'w/training/iter_80.pth' and state.validation_dice is None
    (finished.training / 'iter_80.pth').write_bytes(b'cut short')
    with pytest.raises(InputError, match='iter_80.pth: is not whole'):
        finished([.5], validates=False)
