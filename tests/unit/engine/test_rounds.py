"""Rounds: settings, boundaries, the guard, what is remembered, which images."""
import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.engine.guard import KEPT, TAKEN_BACK, Guard
from sa2va_dpo.engine.mining import policy_digest
from sa2va_dpo.engine.round_images import held_out_images, labelled_images, unlabelled_images, without_known
from sa2va_dpo.engine.round_settings import RoundSettings, boundaries
from sa2va_dpo.engine.round_state import RoundState
from sa2va_dpo.engine.rounds import install_rounds
from sa2va_dpo.models.trainable import in_eval_mode

PROMPT = '<image>Please segment the blood vessels.'


@pytest.mark.parametrize('iters, count, expected', [
    (200, 4, [0, 50, 100, 150, 200]), (10, 4, [0, 3, 5, 8, 10]), (3, 3, [0, 1, 2, 3]), (7, 1, [0, 7])])
def test_boundaries(iters, count, expected):
    assert boundaries(iters, count) == expected


def test_every_round_has_a_step():
    with pytest.raises(InputError, match='rounds.count: 4 rounds of 3 iterations'):
        boundaries(3, 4)
    for iters in range(4, 40):
        bounds = boundaries(iters, 4)
        assert all(a < b for a, b in zip(bounds, bounds[1:]))


def test_the_guard_takes_back_what_lowers_the_metric():
    guard = Guard(patience=2, tolerance=0.01)
    assert guard.decide(0.70, 0.70) == guard.decide(0.70, 0.695) == guard.decide(0.7, 0.9) == KEPT
    assert guard.decide(0.70, 0.68) == guard.decide(0.70, float('nan')) == TAKEN_BACK
    assert not guard.exhausted([KEPT, TAKEN_BACK]) and not guard.exhausted([TAKEN_BACK])
    assert guard.exhausted([KEPT, TAKEN_BACK, TAKEN_BACK]) and not guard.exhausted([TAKEN_BACK, KEPT, TAKEN_BACK])
    assert guard.value(dict(dice=0.5)) == 0.5
    with pytest.raises(InputError, match="guard.metric: 'dice'.*it has iou"):
        guard.value(dict(iou=0.5))


@pytest.mark.parametrize(
    'given, words',
    [
        (dict(rounds=3), 'rounds.rounds: no such setting'),
        (dict(count=0), 'rounds.count: 0 must be a whole number'),
        (dict(judge='dice'), 'expert, consensus, committee'),
        (dict(reference='last'), 'initial, round'),
        (dict(labelled_share=1.5), 'rounds.labelled_share'),
        (dict(unlabelled='x', labelled_share=1.0), 'above 0 and below 1'),
        (dict(unlabelled='x', judge='consensus', labelled_first=-1), 'rounds.labelled_first: -1 must be a whole'),
        (dict(unlabelled='x', judge='consensus', labelled_first=4), 'must be below rounds.count'),
        (dict(labelled_first=1), 'labelled and unlabelled images'),
        (dict(labelled=None, unlabelled='x', judge='consensus', labelled_first=1), 'labelled and unlabelled images'),
        (dict(labelled=None), 'neither labelled nor unlabelled'),
        (dict(unlabelled='x'), 'rounds.unlabelled_gt: missing'),
        (dict(unlabelled='x', judge='committee'), 'rounds.members: missing'),
        (dict(unlabelled='x', judge='predictions'), 'rounds.predictions: missing'),
        (dict(unlabelled='x', judge='consensus', wrong=0.2), 'rounds.wrong'),
        (dict(guard=dict(minimum=1)), 'guard.minimum'),
        (dict(guard=dict(patience=0)), 'patience'),
        (dict(cells=0), 'rounds.cells'),
        (dict(seed=-1), 'rounds.seed'),
    ],
)
def test_settings_that_make_no_sense(given, words):
    with pytest.raises(InputError, match=words):
        RoundSettings.from_config(given)


def test_what_the_settings_ask_of_mining(tmp_path):
    where = dict(images_dir='i', gt_dir='g', output_dir='o', model_path='m')
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / 'x.png'), np.zeros((4, 4), np.uint8))
    settings = RoundSettings.from_config(dict(unlabelled='u', judge='predictions', predictions=str(tmp_path), cells=8,
                                              min_iou_gap=0.1, num_samples=7))
    labelled = settings.labelled_config(**where)
    assert labelled.include_gt and labelled.min_iou_gap == 0 and labelled.judge == ('IoU',) and labelled.cells is None
    assert len(labelled.compared) == 5 and labelled.num_samples == 7
    own = RoundSettings.from_config(dict(include_gt=False, cells=8)).labelled_config(**where)
    assert not own.include_gt and own.cells == 8 and own.min_iou_gap == 0.02
    unlabelled = settings.unlabelled_config(**dict(where, gt_dir=None))
    assert unlabelled.judge == (
        dict(type='Committee', checkpoints=(), folders=(str(tmp_path / 'a'), str(tmp_path / 'b'))),
    )
    assert (unlabelled.cells, unlabelled.min_iou_gap, unlabelled.include_gt) == (8, 0.1, False)
    assert settings.unwatched and settings.judge_name() == 'Committee'
    picks = RoundSettings.from_config(dict(unlabelled='u', unlabelled_gt='g', judge='iou', wrong=0.2))
    assert picks.judge_spec() == dict(type='Pick', wrong=0.2) and not picks.unwatched


# -- images ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def root(tmp_path):
    """A data root: two labelled images with two pairs each, one validation image; and a folder of unlabelled ones."""
    for name in ('images', 'gt', 'masks', 'more'):
        (tmp_path / name).mkdir()
    for k in range(6):
        cv2.imwrite(str(tmp_path / ('images' if k < 3 else 'more') / f'{k}.png'), np.full((8, 8, 3), 40 * k, np.uint8))
    for k in range(3):
        cv2.imwrite(str(tmp_path / f'gt/{k}.png'), np.eye(8, dtype=np.uint8) * 255)
        for j in range(2):
            cv2.imwrite(str(tmp_path / f'masks/{k}_{j}.png'), np.zeros((8, 8), np.uint8))
    pairs = [
        dict(
            image=f'images/{k}.png',
            chosen_mask=f'gt/{k}.png',
            rejected_mask=f'masks/{k}_{j}.png',
            chosen_iou=1.0,
            rejected_iou=0.5,
            iou_gap=0.5,
            prompt=PROMPT,
            gt_mask=f'gt/{k}.png',
        )
        for k in range(2)
        for j in range(2)
    ]
    (tmp_path / 'dpo_annotations.json').write_text(json.dumps(pairs))
    (tmp_path / 'val_annotations.json').write_text(
        json.dumps([dict(image='images/2.png', mask='gt/2.png', prompt=PROMPT)])
    )
    return tmp_path


def test_labelled_images_are_named_by_pairs_by_a_list_or_by_folders(root):
    expected = [(root / f'images/{k}.png', root / f'gt/{k}.png') for k in range(2)]
    assert labelled_images('dpo_annotations.json', root) == expected
    assert labelled_images('val_annotations.json', root) == [(root / 'images/2.png', root / 'gt/2.png')]
    found = labelled_images(dict(images=str(root / 'images'), gt=str(root / 'gt')), root)
    assert len(found) == 3 and found[:2] == expected and labelled_images(None, root) == []


def test_labelled_images_that_are_none(root):
    pairs = json.loads((root / 'dpo_annotations.json').read_text())
    for pair in pairs:
        del pair['gt_mask']
    (root / 'own.json').write_text(json.dumps(pairs))
    with pytest.raises(InputError, match='own.json.*names no gt_mask.*rounds.labelled=None'):
        labelled_images('own.json', root)
    with pytest.raises(InputError, match='nothing.json.*set rounds.labelled'):
        labelled_images('nothing.json', root)
    with pytest.raises(InputError, match='the two fields images and gt'):
        labelled_images(dict(images='x'), root)


def test_unlabelled_images_are_a_folder_or_a_list(root):
    in_folder = unlabelled_images(str(root / 'more'))
    assert [path.name for path in in_folder] == ['3.png', '4.png', '5.png'] and unlabelled_images(None) == []
    (root / 'list.txt').write_text('more/4.png\n\nmore/3.png\n', encoding='utf-8')
    assert unlabelled_images(str(root / 'list.txt')) == [root / 'more/4.png', root / 'more/3.png']
    (root / 'list.txt').write_text('more/9.png\n')
    with pytest.raises(InputError, match='names .*9.png, which is no file'):
        unlabelled_images(str(root / 'list.txt'))
    with pytest.raises(InputError, match='no such folder'):
        unlabelled_images(str(root / 'nowhere'))


def test_nothing_that_judges_the_run_is_trained_on(root):
    more, held_out = unlabelled_images(str(root / 'more')), held_out_images(root)
    labelled = [image for image, _ in labelled_images('dpo_annotations.json', root)]
    (root / 'more/copy.png').write_bytes((root / 'images/1.png').read_bytes())
    kept, left_out = without_known([*more, root / 'more/copy.png'], labelled, held_out)
    assert kept == more and left_out == [root / 'more/copy.png']
    (root / 'more/renamed.png').write_bytes((root / 'images/2.png').read_bytes())
    with pytest.raises(InputError, match='renamed.png: is 2.png of val_annotations.json'):
        without_known([root / 'more/renamed.png'], labelled, held_out)


def config(root, **rounds):
    return Config(
        dict(
            rounds=rounds,
            model=dict(type='Sa2VADPOModel', preference=dict(beta=1.0), checkpoint='c'),
            train_dataloader=dict(
                dataset=dict(
                    type='DPOVesselDataset',
                    data_root=str(root),
                    preprocessor='c',
                    score_size=64,
                    min_iou_gap=0.05,
                    flip_prob=0.5,
                    seed=3,
                )
            ),
        )
    )


def test_a_run_with_rounds_keeps_its_data_settings(root):
    cfg = config(root, count=2, judge='consensus', unlabelled=str(root / 'more'), labelled_share=0.25)
    assert '2 labelled and 3 unlabelled images, judged by consensus' in install_rounds(cfg)[0]
    data = cfg.train_dataloader.dataset
    assert (data.type, data.score_size, data.flip_prob, data.seed, data.labelled_share) == (
        'RoundPairs',
        64,
        0.5,
        3,
        0.25,
    )
    assert len(data.labelled_images) == 2 and len(data.unlabelled_images) == 3
    [hook] = cfg.custom_hooks
    assert hook.type == 'RoundsHook' and [pair[0] for pair in hook.check] == [str(root / 'images/2.png')]
    plain = Config(dict(train_dataloader=dict(dataset=dict(type='DPOVesselDataset')), rounds=None))
    assert install_rounds(plain) == [] and plain.train_dataloader.dataset.type == 'DPOVesselDataset'


def test_without_a_labelled_image_it_is_said_what_nobody_knows(root):
    (root / 'val_annotations.json').unlink()
    lines = install_rounds(config(root, labelled=None, judge='consensus', unlabelled=str(root / 'more')))
    assert 'nothing tells whether the masks become better or worse' in lines[-1]


# -- memory ---------------------------------------------------------------------------------------------------------

def test_what_lies_after_the_checkpoint_never_happened(tmp_path):
    state = RoundState(tmp_path)
    state.rounds = [dict(round=0, iteration=0, decision=KEPT, decided_at=5, metric_after=0.6),
                    dict(round=1, iteration=5, decision=TAKEN_BACK, decided_at=10, metric_after=0.5)]
    state.ended = 'because'
    state.write()
    again = RoundState(tmp_path)
    again.read(10)
    assert again.rounds == state.rounds and again.ended == 'because'
    again.read(9)
    assert [r['decision'] for r in again.rounds] == [KEPT, None] and again.ended is None
    again.read(4)
    assert len(again.rounds) == 1 and again.rounds[0]['decision'] is None and again.rounds[0]['metric_after'] is None
    (tmp_path / 'rounds.json').write_text('{"rounds": 3}')
    with pytest.raises(InputError, match='rounds must be a list'):
        again.read(4)


def test_the_digest_names_the_state_of_the_policy():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    first = policy_digest(model)
    model[0].weight.data.add_(1)
    assert policy_digest(model) == first, 'what is frozen is the checkpoint’s'
    model[1].bias.data[0] += 1e-6
    assert policy_digest(model) != first
    assert policy_digest(model.bfloat16()) != first


def test_mining_leaves_the_model_as_it_was():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    model.train()
    model[1].eval()
    with pytest.raises(RuntimeError), in_eval_mode(model):
        assert not model[0].training and not torch.is_grad_enabled()
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, True, False] and torch.is_grad_enabled()
