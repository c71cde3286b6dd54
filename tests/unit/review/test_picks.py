"""Candidates, picks, and the pairs that follow, without a browser."""
import json

import cv2
import numpy as np
import pytest

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import read_pairs, write_pairs
from sa2va_dpo.datasets.mask_io import read_mask
from sa2va_dpo.evaluation.counts import disagreement, mask_iou
from sa2va_dpo.review.candidates import compose, distinct, regions
from sa2va_dpo.review.pick_journal import PickJournal
from sa2va_dpo.review.picks import Composite, pick_statistics, picks_to_records, read_candidates, read_picks


def pick_all(root, reviewer, picks):
    found = read_candidates(root)
    with PickJournal(found, reviewer) as journal:
        for image, pick in picks.items():
            journal.pick(image, pick, 2.5)


# --- candidates ------------------------------------------------------------------------------------------------------


def test_disagreement_by_hand():
    a, b, c = np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 0, 0]], bool), np.array([[0, 0, 1, 1]], bool)
    assert (mask_iou(a, b), mask_iou(a, c), mask_iou(b, c)) == (0.5, 0, 0)
    assert disagreement(np.stack([a, b, c])) == pytest.approx(1 - 0.5 / 3)
    assert disagreement(np.stack([a, a])) == 0 and disagreement(a[None]) == 0
    assert mask_iou(a & ~a, a & ~a) == 1


def test_read(pick_root):
    found = read_candidates(pick_root)
    assert list(found.images) == ['images/a.png', 'images/b.png', 'images/c.png']
    first = found.images['images/a.png']
    assert first.candidates[0].source == 'greedy' and first.candidates[0].predicted_iou == 0.8
    assert first.disagreement == 0.2  # as the file says
    assert found.images['images/b.png'].disagreement == pytest.approx(disagreement(found.masks('images/b.png')))


def test_the_fingerprint_is_of_the_pixels_too(pick_root):
    before = read_candidates(pick_root).fingerprint
    assert read_candidates(pick_root).fingerprint == before
    mask = read_mask(pick_root / 'candidates/a_1.png')
    mask[0, 0] = ~mask[0, 0]
    cv2.imwrite(str(pick_root / 'candidates/a_1.png'), mask.astype(np.uint8) * 255)
    assert read_candidates(pick_root).fingerprint != before


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda d: d.clear(), 'empty list'),
        (lambda d: d.append(3), 'record 3: is a int'),
        (lambda d: d.append(d[0]), "'images/a.png' stands in the file before"),
        (lambda d: d[0].pop('prompt'), 'record 0: prompt is None'),
        (lambda d: d[0].update(image='../a.png'), 'leaves the data root'),
        (lambda d: d[0].update(image='/etc/passwd'), 'leaves the data root'),
        (lambda d: d[0].update(image='\ud800'), 'half a surrogate pair'),
        (lambda d: d[0].update(image='a' * 5000), 'no such file'),
        (lambda d: d[0].update(image='\x00'), 'image'),
        (lambda d: d[0].update(candidates=[]), 'at least one mask'),
        (lambda d: d[0].update(candidates='x'), 'at least one mask'),
        (lambda d: d[0]['candidates'][1].pop('mask'), 'candidate 1: mask is None'),
        (lambda d: d[0]['candidates'][1].update(mask='candidates/none.png'), 'no such file'),
        (lambda d: d[0]['candidates'][0].update(predicted_iou='x'), "predicted_iou is 'x'"),
        (lambda d: d[0].update(disagreement=float('nan')), 'NaN is not a number'),
        (lambda d: d[0].update(disagreement=True), 'disagreement is True'),
        (lambda d: d[0].update(gt_mask=3), 'gt_mask is 3'),
    ],
)
def test_bad_candidates_are_named(pick_root, change, words):
    content = json.loads((pick_root / 'candidates.json').read_text())
    change(content)
    (pick_root / 'candidates.json').write_text(json.dumps(content))
    with pytest.raises(InputError, match=words) as error:
        read_candidates(pick_root)
    assert '\n' not in str(error.value)


def test_no_file_and_no_json(tmp_path, pick_root):
    with pytest.raises(InputError, match='no such file'):
        read_candidates(tmp_path)
    (pick_root / 'candidates.json').write_text('{')
    with pytest.raises(InputError, match='not valid JSON'):
        read_candidates(pick_root)


# --- regions ---------------------------------------------------------------------------------------------------------


def test_regions_by_hand():
    masks = np.zeros((2, 6, 12), bool)
    masks[:, 0] = True                   # both: no region
    masks[0, 1:4, 0:3] = True            # 9 pixels that only the first has
    masks[1, 1:4, 3:6] = True            # touches it, but only the second has it: another region
    masks[0, 3:6, 9:12] = True           # 9 pixels apart from the first
    masks[1, 5, 0:4] = True              # 4 pixels: too small to be offered
    labels, count = regions(masks)
    assert count == 3 and set(np.unique(labels)) == {0, 1, 2, 3}
    assert [int((labels == k).sum()) for k in (1, 2, 3)] == [9, 9, 9]
    assert labels[5, 0] == 0 and regions(masks, smallest=4)[1] == 4
    assert labels[2, 1] != labels[2, 4] != labels[4, 10]


def test_a_composite_by_hand():
    masks = np.zeros((2, 6, 12), bool)
    masks[:, 0] = True
    masks[0, 1:4, 0:3] = True
    masks[1, 1:4, 3:6] = True
    masks[1, 5, 0:4] = True
    labels, _ = regions(masks)
    left, right = int(labels[2, 1]), int(labels[2, 4])
    nothing = compose(masks, labels, set(), None)
    assert (nothing == masks.all(0)).all()  # one of two is no majority
    assert (compose(masks, labels, {left}, 0) == masks[0]).all()
    assert (compose(masks, labels, {right}, 1) == masks[1]).all()
    both = compose(masks, labels, {left, right, 99, -1, 0}, 1)
    assert (both == masks.any(0)).all()


def test_repeated_masks_are_found():
    masks = np.zeros((4, 3, 3), bool)
    masks[1, 0] = masks[3, 0] = True
    assert distinct(masks) == [0, 1]


# --- journal ---------------------------------------------------------------------------------------------------------


def test_the_journal_is_as_agreed(pick_root):
    pick_all(pick_root, '医生1', {'images/a.png': 1, 'images/b.png': 'none', 'images/c.png': 'equal'})
    path, = (pick_root / 'review').iterdir()
    assert path.name.isascii() and path.name.startswith('picks.')
    lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
    assert lines[0] == dict(fingerprint=read_candidates(pick_root).fingerprint, reviewer='医生1')
    assert [(line['image'], line['pick'], line['seconds']) for line in lines[1:]] == [
        ('images/a.png', 1, 2.5), ('images/b.png', 'none', 2.5), ('images/c.png', 'equal', 2.5)]
    assert lines[1]['time'].endswith('+00:00')


def test_the_last_line_counts_and_a_torn_one_is_forgotten(pick_root):
    pick_all(pick_root, 'eye', {'images/a.png': 1})
    pick_all(pick_root, 'eye', {'images/a.png': 2})
    path = pick_root / 'review/picks.eye.jsonl'
    path.write_bytes(path.read_bytes() + b'{"image": "images/b.png", "pick": 0')
    assert {image: pick.pick for image, pick in read_picks(pick_root, 'eye').agreed.items()} == {'images/a.png': 2}
    pick_all(pick_root, 'eye', {'images/c.png': 0})
    assert {image: pick.pick for image, pick in read_picks(pick_root).agreed.items()} == {
        'images/a.png': 2,
        'images/c.png': 0,
    }


def test_what_is_no_pick_is_refused_and_not_written(pick_root):
    found = read_candidates(pick_root)
    with PickJournal(found, 'eye') as journal:
        for image, pick in (('images/a.png', 4), ('images/a.png', -1), ('images/a.png', True), ('images/a.png', 'all'),
                            ('images/z.png', 0), ('images/a.png', 1.0)):
            with pytest.raises(InputError):
                journal.pick(image, pick, 1)
        assert len(journal.path.read_bytes().splitlines()) == 1


@pytest.mark.parametrize('line, words', [
    ('{"image": "x", "pick": 0}', "image 'x' is not in"), ('{"image": "images/a.png", "pick": 9}', 'pick is 9'),
    ('{"image": "images/a.png", "pick": 0, "seconds": -1}', 'seconds is -1'),
    ('{"image": "images/a.png", "pick": 0, "clicks": 0}', 'clicks is 0'),
    ('{"image": "images/a.png", "pick": {"mask": "../x.png"}}', 'leaves the data root'),
    ('{"image": "images/a.png", "pick": {"mask": "picks/none.png"}}', 'no such file'),
    ('{"image": "images/a.png", "pick": {"from": [0]}}', 'must name a mask'),
    ('{"image": "images/a.png", "pick": {"mask": "images/a.png", "from": [9]}}', 'must name a mask'),
    ('[]', 'line 2 is no JSON object')])
def test_a_bad_line_is_named(pick_root, line, words):
    pick_all(pick_root, 'eye', {})
    path = pick_root / 'review/picks.eye.jsonl'
    path.write_text(path.read_text() + line + '\n')
    with pytest.raises(InputError, match=words):
        read_picks(pick_root, 'eye')


def test_picks_of_other_candidates_are_refused(pick_root):
    pick_all(pick_root, 'eye', {'images/a.png': 0})
    picks = read_picks(pick_root)
    content = json.loads((pick_root / 'candidates.json').read_text())
    content[0]['prompt'] = 'another'
    (pick_root / 'candidates.json').write_text(json.dumps(content))
    with pytest.raises(InputError, match='another data set'):
        read_picks(pick_root)
    with pytest.raises(InputError, match='has changed since'):
        picks_to_records(pick_root, picks)


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_one_pick_gives_a_pair_with_every_other_candidate(pick_root):
    pick_all(pick_root, 'eye', {'images/a.png': 1, 'images/b.png': 'none', 'images/c.png': 'equal'})
    records = picks_to_records(pick_root, read_picks(pick_root))
    # Candidate 3 of image a repeats candidate 1: identical masks make no pair.
    assert [(r.chosen_mask, r.rejected_mask) for r in records] == [
        ('candidates/a_1.png', 'candidates/a_0.png'), ('candidates/a_1.png', 'candidates/a_2.png')]
    masks = read_candidates(pick_root).masks('images/a.png')
    for record, k in zip(records, (0, 2)):
        expected = (masks[1] & masks[k]).sum() / (masks[1] | masks[k]).sum()
        assert record.rejected_iou == pytest.approx(expected, abs=1e-6) and record.chosen_iou == 1
        assert record.extra == dict(judge='expert', chosen_score=1.0, rejected_score=0.0, iou_estimated=True,
                                    reviewers=['eye'])
        assert record.preference_gap == 1 and record.prompt == '<image>Please segment the blood vessels.'
    assert (records[0].chosen_source, records[0].rejected_source) == ('flip', 'greedy')
    write_pairs(pick_root / 'dpo_annotations.json', records)
    assert read_pairs(pick_root / 'dpo_annotations.json', pick_root) == records


def test_a_composite_is_chosen_against_all(pick_root):
    found = read_candidates(pick_root)
    masks = found.masks('images/b.png')
    union = masks.any(0)
    with PickJournal(found, 'eye') as journal:
        journal.compose('images/b.png', union, [0, 2], 7.25, 3)
    pick = read_picks(pick_root).agreed['images/b.png']
    assert isinstance(pick.pick, Composite) and pick.pick.sources == (0, 2) and (pick.seconds, pick.clicks) == (7.25, 3)
    assert pick.pick.mask.startswith('picks/b.eye.') and (read_mask(pick_root / pick.pick.mask) == union).all()
    records = picks_to_records(pick_root, read_picks(pick_root))
    assert len(records) == 3 and {r.chosen_mask for r in records} == {pick.pick.mask}
    assert {r.chosen_source for r in records} == {'composite'}
    assert [r.rejected_iou for r in records] == [pytest.approx(m.sum() / union.sum(), abs=1e-6) for m in masks]


def test_a_later_composite_leaves_the_earlier_file_alone(pick_root):
    found = read_candidates(pick_root)
    masks = found.masks('images/b.png')
    with PickJournal(found, 'eye') as journal:
        journal.compose('images/b.png', masks.any(0), [0], 1, 2)
        first = journal.picks['images/b.png'].pick.mask
        journal.compose('images/b.png', masks.all(0), [1], 1, 2)
        second = journal.picks['images/b.png'].pick.mask
    assert first != second and (read_mask(pick_root / first) == masks.any(0)).all()
    assert not [path for path in (pick_root / 'picks').iterdir() if path.suffix != '.png']


def test_images_of_one_stem_do_not_share_a_composite(pick_root):
    content = json.loads((pick_root / 'candidates.json').read_text())
    (pick_root / 'images/sub').mkdir()
    (pick_root / 'images/b.png').rename(pick_root / 'images/sub/a.png')
    content[1]['image'] = 'images/sub/a.png'
    (pick_root / 'candidates.json').write_text(json.dumps(content))
    found = read_candidates(pick_root)
    with PickJournal(found, 'eye') as journal:
        for image in ('images/a.png', 'images/sub/a.png'):
            journal.compose(image, np.ones(found.masks(image).shape[1:], bool), [0], 1, 1)
        assert len({pick.pick.mask for pick in journal.picks.values()}) == 2


# --- several reviewers -----------------------------------------------------------------------------------------------


def test_reviewers_agree_by_pixels_and_conflicts_give_no_pair(pick_root):
    # Candidates 1 and 3 of a are the same mask; on b they differ; c was seen by one.
    pick_all(pick_root, 'A', {'images/a.png': 1, 'images/b.png': 0, 'images/c.png': 2})
    pick_all(pick_root, '医生1', {'images/a.png': 3, 'images/b.png': 'none'})
    picks = read_picks(pick_root)
    assert set(picks.agreed) == {'images/a.png', 'images/c.png'} and set(picks.conflicts) == {'images/b.png'}
    assert {pick.reviewer for pick in picks.conflicts['images/b.png']} == {'A', '医生1'}
    records = picks_to_records(pick_root, picks)
    assert {r.image for r in records} == {'images/a.png', 'images/c.png'}
    assert records[0].extra['reviewers'] == ['A', '医生1']
    assert set(read_picks(pick_root, '医生1').agreed) == {'images/a.png', 'images/b.png'}


def test_statistics(pick_root):
    found = read_candidates(pick_root)
    with PickJournal(found, 'A') as journal:
        journal.pick('images/a.png', 1, 2)
        journal.pick('images/b.png', 'none', 4)
        journal.compose('images/c.png', np.ones((16, 20), bool), [0], 12, 5)
    pick_all(pick_root, 'B', {'images/a.png': 0})
    facts = pick_statistics(read_picks(pick_root))
    assert (facts['decided'], facts['agreed'], facts['conflicts']) == (3, 2, 1)
    assert (facts['decisions'], facts['candidate'], facts['composite'], facts['none'], facts['equal']) == (
        4,
        2,
        1,
        1,
        0,
    )
    assert facts['clicks'] == 8 and facts['seconds'] == 20.5 and facts['seconds_median'] == 3.2
    assert facts['reviewers']['B'] == dict(
        decisions=1, candidate=1, composite=0, none=0, equal=0, clicks=1, seconds=2.5, seconds_median=2.5
    )


def test_nobody_has_picked(pick_root):
    for reviewer in (None, 'eye'):
        with pytest.raises(InputError, match='picked'):
            read_picks(pick_root, reviewer)


def test_as_many_picks_are_wanted_as_can_be_made(pick_root):
    content = json.loads((pick_root / 'candidates.json').read_text())
    content[1]['disagreement'] = 0.0
    content[2]['candidates'] = content[2]['candidates'][:1]
    (pick_root / 'candidates.json').write_text(json.dumps(content))
    found = read_candidates(pick_root)
    assert found.pickable == ['images/a.png'] and [found.wanted(clicks) for clicks in (None, 1, 5)] == [1, 1, 1]
    picks = read_picks(pick_root, empty=True)
    assert picks.agreed == {} and picks_to_records(pick_root, picks) == []
    assert pick_statistics(picks)['decided'] == 0 and pick_statistics(picks)['seconds_median'] is None
