"""Kendall's tau by hand, and when a judge is trusted."""
import pytest

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import CANDIDATES_FILE
from sa2va_dpo.preferences.candidate_set import make_candidates
from sa2va_dpo.preferences.config import GenerateConfig
from sa2va_dpo.preferences.generate import generate_pairs
from sa2va_dpo.preferences.rank_agreement import Agreement, agreement, agreement_of_entries


def test_tau_by_hand():
    """1 2 3 4 against 1 2 4 3: five pairs of six in order, one not: 4/6. Against 4 3 2 1: -1."""
    found = agreement([[1, 2, 3, 4], [1, 2, 3, 4]], [[1, 2, 4, 3], [4, 3, 2, 1]])
    assert found.tau == pytest.approx((4 / 6 - 1) / 2, abs=1e-6) and found.images == 2
    assert (found.low, found.high) == pytest.approx((-1, 4 / 6), abs=1e-6) and not found.trusted


def test_candidates_without_a_score_are_left_out_and_equal_ones_say_nothing():
    assert agreement([[1, 2, 3]], [[1, None, 2]]).tau == 1
    found = agreement([[0.5, 0.5], [1, 2]], [[1, 2], [3, 3]])
    assert found.images == 1 and found.tau == 0, 'equal truths tell nothing, a judge without an opinion is no help'
    assert agreement([], []).tau is None and not agreement([], []).trusted


def test_when_a_judge_is_trusted():
    good = agreement([[1, 2, 3, 4]] * 5, [[1, 2, 3, 4]] * 4 + [[1, 2, 4, 3]])
    assert good.trusted and good.low > 0.7
    # Half of the images one way, half the other: the mean may be above zero, the interval is not.
    torn = agreement([[1, 2, 3]] * 6, [[1, 2, 3]] * 4 + [[3, 2, 1]] * 2)
    assert torn.tau > 0 and torn.low < 0 and not torn.trusted
    assert Agreement.of([0.4]).trusted and not Agreement.of([-0.4]).trusted
    assert str(good) == f'{good.tau:.2f} (95% interval {good.low:.2f} to {good.high:.2f}) over 5 images'


def test_agreement_leaves_the_ground_truth_out():
    candidates = [
        dict(source='ground_truth', iou=1.0, compared=dict(A=0.0)),
        dict(source='greedy', iou=0.5, compared=dict(A=0.5)),
        dict(source='view:hflip', iou=0.6, compared=dict(A=0.7)),
    ]
    assert agreement_of_entries([dict(candidates=candidates)])['A'].tau == 1


def config(folders, **more):
    return GenerateConfig(
        mode='generate',
        val_fraction=0.0,
        test_fraction=0.0,
        images_dir=folders.images,
        output_dir=folders.out,
        model_path=folders.images,
        **{'gt_dir': folders.gt, **more},
    )


def test_compared_judges_decide_nothing(folders, policy, preprocessor):
    generate_pairs(config(folders), policy, preprocessor)
    import json
    plain = json.load(open(f'{folders.out}/dpo_annotations.json'))
    report = generate_pairs(config(folders, compared=('Consensus', 'Agreement', 'PredictedIoU')), policy, preprocessor,
                            overwrite=True)
    assert json.load(open(f'{folders.out}/dpo_annotations.json')) == plain
    assert set(report['judge_agreement']) == {'Consensus', 'Agreement', 'PredictedIoU'}
    assert report['judge_agreement']['Consensus']['tau'] > 0.5


def test_candidates_for_people(folders, policy, preprocessor, tmp_path):
    import json
    from pathlib import Path

    from sa2va_dpo.datasets.mask_io import list_images, read_mask

    images = list_images(folders.images)
    settings = config(folders, gt_dir=None, judge=('PredictedIoU',), num_samples=4)
    report = make_candidates(settings, images, policy, preprocessor)
    entries = json.loads((Path(folders.out) / CANDIDATES_FILE).read_text())
    assert len(entries) == 8 == report['images'] and report['candidates'] == 4
    apart = [entry['disagreement'] for entry in entries]
    assert apart == sorted(apart, reverse=True) and apart[0] > apart[-1]
    for entry in entries:
        assert (Path(folders.out) / entry['image']).is_file() and entry['prompt']
        assert entry['candidates'][0]['source'] == 'greedy' and 0 < entry['candidates'][0]['predicted_iou'] <= 1
        masks = [read_mask(Path(folders.out) / candidate['mask']) for candidate in entry['candidates']]
        assert all((a != b).any() for i, a in enumerate(masks) for b in masks[:i])
    calls = policy.decoder_calls
    assert make_candidates(settings, images, policy, preprocessor) == report and policy.decoder_calls == calls
    with pytest.raises(InputError, match='made with other settings'):
        make_candidates(
            config(folders, gt_dir=None, judge=('PredictedIoU',), num_samples=3), images, policy, preprocessor
        )


def test_no_pair_is_a_result_where_it_is_allowed(folders, policy, preprocessor):
    report = generate_pairs(config(folders, min_iou_gap=0.99), policy, preprocessor, allow_empty=True)
    assert report['train_pairs'] == 0 and len(report['images_without_pairs']) == 8
    with pytest.raises(InputError, match='no training pair'):
        generate_pairs(config(folders, min_iou_gap=0.98), policy, preprocessor, overwrite=True)
