"""Pairs that are taken over are those that mining would make, and none is taken over that might not be."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sa2va_dpo.datasets.annotations import read_pairs
from sa2va_dpo.preferences.earlier import ENTRIES, EarlierPairs
from sa2va_dpo.preferences.generate import GenerateConfig, generate_pairs
from sa2va_dpo.preferences.miner import Miner
from sa2va_dpo.preferences.sampler import Policies

SETTINGS = dict(mode='generate', model_path='given', min_iou_gap=0.02, device='cpu', include_gt=True,
                pairing='BestVsEach', compared=('Consensus', 'ExpectedIoU'), seed=3, test_fraction=0.0)


@pytest.fixture
def root(folders, policy, preprocessor):
    """Pairs of six images, two held out by a seed of the split's own."""
    generate_pairs(GenerateConfig(**SETTINGS, images_dir=folders.images, gt_dir=folders.gt, output_dir=folders.out,
                                  val_fraction=0.3, split_seed=1), policy, preprocessor)
    return Path(folders.out)


@pytest.fixture
def again(root, policy, preprocessor, tmp_path):
    """The training images of that root once more, as a round mines them; (folder, report, names that were mined)."""
    def again(name='again', earlier=None, **changes):
        pairs = json.loads((root / 'dpo_annotations.json').read_text())
        truths = {root / pair['image']: root / pair['gt_mask'] for pair in pairs}
        images = list(truths)
        config = GenerateConfig(**{**SETTINGS, **changes}, images_dir=str(images[0].parent), gt_dir=str(root / 'gt'),
                                output_dir=str(tmp_path / name), val_fraction=0.0, policy_digest='start', link=True)
        mined, mine = [], Miner.mine
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Miner, 'mine', lambda self, item, pixels: mined.append(item.image.name) or mine(
                self, item, pixels))
            report = generate_pairs(config, policy, preprocessor, images, overwrite=True, allow_empty=True,
                                    truths=truths, quiet=True, earlier=earlier)
        return tmp_path / name, report, mined
    return again


def contents(folder):
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    report = json.loads(found.pop('generation_report.json'))
    for name in ('taken_over', 'fingerprint', 'made_with'):
        del report[name]
    return found, report


def test_what_is_taken_over_is_what_mining_makes(root, again):
    fresh, report, mined = again('fresh')
    assert len(mined) == 6 and report['taken_over'] == 0
    earlier = EarlierPairs(root)
    folder, report, mined = again(earlier=earlier)
    assert mined == [] and report['taken_over'] == 6 and earlier.refused == ''
    assert contents(folder) == contents(fresh)
    assert set(report['judge_agreement']) == {'Consensus', 'ExpectedIoU'}
    assert not (folder / ENTRIES).exists(), 'nobody takes over from a round'


@pytest.mark.parametrize('changes', [
    dict(seed=4), dict(num_samples=4), dict(min_iou_gap=0.0), dict(prompt='<image>Where?'), dict(include_gt=False),
    dict(max_pairs_per_image=2), dict(sources=('Thresholds', 'SegNoise')), dict(pairing='AllPairs'),
    dict(dice_tolerance=0.1), dict(cells=2), dict(compared=('Consensus',)), dict(max_candidate_iou=0.9),
    dict(judge=('ExpectedIoU',)), dict(balance=True),
], ids=lambda changes: next(iter(changes)))
def test_other_settings_are_mined_anew(root, again, changes):
    earlier = EarlierPairs(root)
    _, report, mined = again(earlier=earlier, **changes)
    assert len(mined) == 6 and report['taken_over'] == 0
    assert earlier.refused.startswith(f'made with other settings: settings.{next(iter(changes))}')


def test_another_state_of_the_policy_is_mined_anew(root, again, policy):
    policy.weight.data += 1e-6
    earlier = EarlierPairs(root)
    assert len(again(earlier=earlier)[2]) == 6 and earlier.refused == 'mined from another state of the policy'


@pytest.mark.parametrize('change', [
    lambda pre: setattr(type(pre), 'fingerprint', lambda self: 'another'),
    lambda pre: setattr(type(pre), 'view', 'in tiles'),
], ids=['preprocessing', 'view'])
def test_another_way_of_looking_is_another_state(root, policy, preprocessor, change):
    class Other(type(preprocessor)):
        pass

    other = Other()
    config = GenerateConfig(**SETTINGS, images_dir='i', gt_dir='g', output_dir='o')
    assert EarlierPairs(root).fits(config, Policies('given', 'cpu', policy, other))
    change(other)
    earlier = EarlierPairs(root)
    assert not earlier.fits(config, Policies('given', 'cpu', policy, other)) and 'another state' in earlier.refused


def test_masks_that_others_vote_with_are_not_recorded(folders, policy, preprocessor, tmp_path):
    compared = (dict(type='Committee', checkpoints=(), folders=(folders.pred + '/good', folders.pred + '/bad')),)
    config = GenerateConfig(**{**SETTINGS, 'compared': compared}, images_dir=folders.images, gt_dir=folders.gt,
                            output_dir=folders.out, val_fraction=0.0)
    generate_pairs(config, policy, preprocessor)
    earlier = EarlierPairs(folders.out)
    assert not earlier.fits(config, Policies('given', 'cpu', policy, preprocessor))
    assert earlier.refused == 'other checkpoints or masks on disk take part'


def _shift(path):
    Image.fromarray(np.roll(np.asarray(Image.open(path)), 3, 1)).save(path)


@pytest.mark.parametrize('what, change', [
    ('image', _shift), ('gt_mask', _shift), ('chosen_mask', _shift), ('rejected_mask', _shift),
    ('chosen_mask', Path.unlink), ('rejected_mask', Path.unlink),
])
def test_an_image_whose_files_are_not_what_they_were_is_mined_anew(root, again, what, change):
    pair = read_pairs(root / 'dpo_annotations.json', root)[-1]
    change(root / getattr(pair, what))
    fresh, _, _ = again('fresh')
    folder, report, mined = again(earlier=EarlierPairs(root))
    assert mined == [Path(pair.image).name] and report['taken_over'] == 5
    assert contents(folder) == contents(fresh)


def test_an_image_of_another_name_draws_otherwise(root, again):
    """Perturbations depend on the stem."""
    pairs = json.loads((root / 'dpo_annotations.json').read_text())
    old = Path(pairs[0]['image'])
    new = f'images/renamed{old.suffix}'
    shutil.move(root / old, root / new)
    for pair in pairs:
        pair['image'] = new if pair['image'] == str(old) else pair['image']
    (root / 'dpo_annotations.json').write_text(json.dumps(pairs))
    assert again(earlier=EarlierPairs(root))[2] == [Path(new).name]


@pytest.mark.parametrize('content', [None, '{', '[]', '{"made_with": 3, "policy": 3, "images": []}', '{"images": [3]}'])
def test_without_a_whole_record_everything_is_mined(root, again, content):
    (root / ENTRIES).unlink()
    if content is not None:
        (root / ENTRIES).write_text(content)
    earlier = EarlierPairs(root)
    assert len(again(earlier=earlier)[2]) == 6
    assert ('was not written down' if content is None else 'cannot be read') in earlier.refused


@pytest.mark.parametrize('stop_after', [0, 1, 5])
def test_taking_over_goes_on_after_an_interruption(root, again, tmp_path, monkeypatch, stop_after):
    from sa2va_dpo.common.journal import Journal

    whole, _, _ = again('whole', earlier=EarlierPairs(root))
    append, done = Journal.append, []

    def failing(self, entry):
        if len(done) == stop_after:
            raise KeyboardInterrupt
        done.append(entry['image'])
        append(self, entry)

    monkeypatch.setattr(Journal, 'append', failing)
    with pytest.raises(KeyboardInterrupt):
        again(earlier=EarlierPairs(root))
    monkeypatch.setattr(Journal, 'append', append)
    folder, report, mined = again(earlier=EarlierPairs(root))
    assert mined == [] and report['taken_over'] == 6 and contents(folder) == contents(whole)
    assert (folder / 'generation_report.json').read_bytes() == (whole / 'generation_report.json').read_bytes()


def test_a_split_of_its_own_seed_leaves_the_draws_alone(folders, root, policy, preprocessor, tmp_path):
    generate_pairs(GenerateConfig(**SETTINGS, images_dir=folders.images, gt_dir=folders.gt, val_fraction=0.0,
                                  output_dir=str(tmp_path / 'all')), policy, preprocessor)
    everything = {pair.chosen_mask: pair for pair in read_pairs(
        tmp_path / 'all/dpo_annotations.json', tmp_path / 'all')}
    pairs = read_pairs(root / 'dpo_annotations.json', root)
    assert pairs and all(everything[pair.chosen_mask].chosen_iou == pair.chosen_iou for pair in pairs)


def test_settings_without_a_split_seed_are_those_of_before():
    given = dict(**SETTINGS, images_dir='i', gt_dir='g', output_dir='o')
    assert 'split_seed' not in GenerateConfig(**given).made_with()['settings']
    assert GenerateConfig(**given, split_seed=0).made_with()['settings']['split_seed'] == 0


def test_an_adapter_that_has_moved_is_not_the_checkpoints():
    from sa2va_dpo.caching.fingerprint import policy_state

    policy = torch.nn.ModuleDict(dict(layer=torch.nn.ModuleDict(dict(
        lora_A=torch.nn.ModuleDict(dict(default=torch.nn.Linear(2, 2, bias=False))),
        lora_B=torch.nn.ModuleDict(dict(default=torch.nn.Linear(2, 2, bias=False)))))))
    policy['layer']['lora_B']['default'].weight.data.zero_()
    start = policy_state(policy, 'p')
    policy['layer']['lora_A']['default'].weight.data += 1
    assert start is not None and policy_state(policy, 'p') == start, 'its product with zero is zero'
    policy['layer']['lora_B']['default'].weight.data[0, 0] = 1e-9
    assert policy_state(policy, 'p') is None
