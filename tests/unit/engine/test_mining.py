"""What a round takes over from the data root, and what it says about that."""
from pathlib import Path

import pytest
import torch

from sa2va_dpo.engine import mining
from sa2va_dpo.engine.mining import Images, RoundMiner, round_seed
from sa2va_dpo.engine.round_settings import RoundSettings


@pytest.fixture
def miner(monkeypatch, tmp_path):
    """A miner of three labelled images whose generator is replaced; (miner, what the generator was told, log)."""
    told, log = [], []

    def make(taken_over=0, refused='', data_root='pairs', seed=2, **settings):
        def generate(config, policy, preprocessor, images, earlier=None, **more):
            told.append((config, earlier))
            if earlier is not None:
                earlier.refused = refused
            return dict(images=3, train_pairs=5, images_without_pairs=[], diversity=0.5, candidates_per_image=None,
                        chosen_agrees_with_ground_truth=None, taken_over=taken_over if earlier is not None else 0)

        monkeypatch.setattr(mining, 'generate_pairs', generate)
        labelled = [(tmp_path / f'{name}.png', tmp_path / f'{name}_gt.png') for name in 'abc']
        return RoundMiner(RoundSettings.from_config(settings), Images(labelled, [], []), 'checkpoint', None, seed,
                          None, log.append, data_root)

    return make, told, log


@pytest.fixture
def model():
    return torch.nn.ModuleDict(dict(policy=torch.nn.Linear(2, 2)))


def mine(miner, model, number, folder):
    model.policy = model['policy']
    return miner.mine(number, model, Path(folder))


@pytest.mark.parametrize('taken_over, refused, line', [
    (3, '', 'round 0: pairs of 3 of 3 labelled images are those of pairs, mined from this very state of the policy'),
    (2, '', 'round 0: pairs of 2 of 3 labelled images are those of pairs'),
    (0, 'made with other settings: seed: was 0, is 7',
     'round 0: the pairs of pairs are not taken over (made with other settings: seed: was 0, is 7): mined anew'),
    (0, '', 'round 0: the pairs of pairs are not taken over (of other images or masks'),
])
def test_the_first_round_asks_the_data_root(miner, model, tmp_path, taken_over, refused, line):
    make, told, log = miner
    mined = mine(make(taken_over, refused), model, 0, tmp_path)
    [(config, earlier)] = told
    assert earlier.root == Path('pairs') and config.seed == round_seed(2, 0)
    assert [text for text in log if text.startswith(line)] == log
    assert mined.record['labelled']['taken_over'] == taken_over


def test_a_round_that_was_mined_before_says_nothing_of_it(miner, model, tmp_path):
    make, _, log = miner
    assert mine(make(3, refused=None), model, 0, tmp_path).record['labelled']['taken_over'] == 3 and not log


@pytest.mark.parametrize('number, data_root', [(1, 'pairs'), (0, None)])
def test_later_rounds_draw_anew(miner, model, tmp_path, number, data_root):
    make, told, log = miner
    mined = mine(make(3, data_root=data_root), model, number, tmp_path)
    assert told[0][1] is None and not log and mined.record['labelled']['taken_over'] == 0


def test_every_round_has_a_seed_of_its_own():
    assert len({round_seed(seed, number) for seed in range(3) for number in range(9)}) == 27
