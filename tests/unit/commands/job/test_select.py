"""What is handed back."""
import json

import pytest

from sa2va_dpo.commands.job.select import best_checkpoint, choose_export, last_checkpoint
from sa2va_dpo.common.errors import InputError


@pytest.mark.parametrize('trained, start, handed_in, choice', [
    (.7, .6, .6, 'trained'), (.6, .6, .6, 'handed_in'), (None, .6, .6, 'handed_in'),
    (None, .7, .6, 'start'), (None, .6, .7, 'handed_in'), (.65, .6, .7, 'handed_in'), (.8, .6, .7, 'trained')])
def test_what_is_handed_back(trained, start, handed_in, choice):
    assert choose_export(trained, start, handed_in) == choice


@pytest.fixture
def training(tmp_path):
    def write(dice, *files):
        (tmp_path / 'val_history.json').write_text(json.dumps([dict(iter=20 * i, dice=value) for i, value in enumerate(dice)]))
        for name in files:
            (tmp_path / name).touch()
        return tmp_path

    return write


def test_the_history_names_the_best_not_the_last_file(training):
    # Sorted by name, another run's best_dice_iter_80 would win.
    folder = training([.5, .6, .7, .65], 'best_dice_iter_40.pth', 'best_dice_iter_80.pth', 'iter_40.pth')
    assert best_checkpoint(folder) == (folder / 'best_dice_iter_40.pth', .7, .5)


def test_without_a_best_file_the_checkpoint_of_that_iteration_serves(training):
    folder = training([.5, .6, .7, .65], 'best_dice_iter_80.pth', 'iter_40.pth')
    assert best_checkpoint(folder)[0] == folder / 'iter_40.pth'


def test_of_equal_ones_the_first(training):
    folder = training([.5, .7, .7], 'best_dice_iter_20.pth', 'best_dice_iter_40.pth')
    assert best_checkpoint(folder)[0].name == 'best_dice_iter_20.pth'


def test_what_only_equals_the_start_is_not_better(training):
    assert best_checkpoint(training([.6, .6, .5], 'best_dice_iter_20.pth')) == (None, .6, .6)


def test_a_validation_without_a_number_counts_as_nothing(training):
    assert best_checkpoint(training([.5, None, .6], 'iter_40.pth'))[1:] == (.6, .5)
    assert best_checkpoint(training([.5, None]))[:2] == (None, 0)


def test_a_checkpoint_that_is_gone_is_named(training):
    with pytest.raises(InputError, match='iteration 40 was best .*neither best_dice_iter_40.pth nor iter_40.pth'):
        best_checkpoint(training([.5, .6, .7], 'best_dice_iter_80.pth'))
    with pytest.raises(InputError, match='val_history.json: holds no validations'):
        best_checkpoint(training([.5]))


def test_the_last_checkpoint_is_the_one_that_training_names(tmp_path):
    with pytest.raises(InputError, match='left no checkpoint'):
        last_checkpoint(tmp_path)
    (tmp_path / 'iter_80.pth').touch()
    (tmp_path / 'iter_9.pth').touch()
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/iter_9.pth')
    assert last_checkpoint(tmp_path) == tmp_path / 'iter_9.pth'
