"""Choosing how closely to look: short trainings on some images, scored on others, and dearer has to be better."""
import math

import numpy as np
import pytest
from torch.utils.data import Dataset

from sa2va_dpo import plugins  # noqa: F401
from sa2va_dpo.inference import grid_choice
from sa2va_dpo.inference.grid_choice import Look, choose_look, looks_at, measure_looks, trained_dice
from sa2va_dpo.models.checkpoint import copy_with_sam_size

LOOKS = [Look('a', 640, 1), Look('b', 1024, 1), Look('a', 640, 2), Look('a', 640, 3)]


class Stripes(Dataset):
    """Items of a source of ``VesselSegDataset``: a white stripe to be found on black."""

    def __init__(self, count, seed):
        self.places = np.random.default_rng(seed).integers(0, 120, count)

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        mask = np.zeros((160, 160), bool)
        mask[:, self.places[index]:self.places[index] + 40] = True
        image = np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255
        return dict(image=image, mask=mask, prompt='<image>Vessels?', image_id=str(index))


@pytest.mark.parametrize('dice, chosen', [
    ((.70, .709, .709, .709), 0),           # nothing by the margin
    ((.70, .715, .72, .724), 1),          # the grid is better than the size, but not by the margin
    ((.70, .712, .73, .735), 2),
    ((.70, .708, .709, .72), 3),          # a step that is too small does not stop a larger one
    ((.70, .60, .60, .60), 0)])
def test_dearer_has_to_be_better_by_the_margin(dice, chosen):
    assert choose_look(LOOKS, dict(zip(map(str, LOOKS), dice))) == LOOKS[chosen]


def test_what_was_not_measured_is_not_chosen():
    assert choose_look(LOOKS, {'640 px, grid 1': .5}) == LOOKS[0]


@pytest.mark.parametrize('dice, tried', [
    ({1: .6, 2: .7, 3: .8}, [1, 2, 3]), ({1: .6, 2: .5, 3: .8}, [1, 2]), ({1: .6, 2: .6, 3: .8}, [1, 2])])
def test_grids_are_followed_as_long_as_they_get_better(monkeypatch, dice, tried):
    monkeypatch.setattr(grid_choice, 'trained_dice', lambda look, *_: dice[look.grid] if look.checkpoint == 'a' else .9)
    found = measure_looks(LOOKS, [], [], 'cpu', 0)
    assert list(found.dice) == [str(look) for look in LOOKS if look.checkpoint == 'b' or look.grid in tried]
    assert found.seconds >= 0


def test_looks_stand_by_their_cost(micro_checkpoint, tmp_path):
    larger = copy_with_sam_size(micro_checkpoint, tmp_path / 'larger', 192)
    found = looks_at([str(micro_checkpoint), str(larger)], (1, 2, 3))
    assert [(look.size, look.grid) for look in found] == [(128, 1), (192, 1), (128, 2), (128, 3)]


def test_a_probe_trains_and_leaves_the_checkpoint_as_it_was(micro_checkpoint, capfd, monkeypatch):
    monkeypatch.setattr(grid_choice, 'LR', 3e-3)
    before = {path.name: path.read_bytes() for path in micro_checkpoint.iterdir()}
    fit, held = Stripes(4, 1), Stripes(2, 2)
    look = Look(str(micro_checkpoint), 128, 2)
    untrained, trained = (trained_dice(look, fit, held, 'cpu', 0, steps) for steps in (1, 30))
    assert trained > untrained + 0.03 and math.isfinite(trained)
    assert trained_dice(look, fit, held, 'cpu', 0, 30) == pytest.approx(trained, abs=1e-6), 'the seed says it all'
    assert {path.name: path.read_bytes() for path in micro_checkpoint.iterdir()} == before
    assert 'probe 128 px, grid 2' in capfd.readouterr().err, 'long work shows a bar'
