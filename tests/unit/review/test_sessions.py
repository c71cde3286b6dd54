"""What a page may ask and do, without one."""
import gzip
import json

import cv2
import numpy as np
import pytest

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.review.candidates import read_candidates
from sa2va_dpo.review.journal import Journal
from sa2va_dpo.review.pairs import open_set
from sa2va_dpo.review.pick_journal import PickJournal
from sa2va_dpo.review.picks import Composite, read_picks
from sa2va_dpo.review.sessions import BITS, BadRequest, Budget, PairSession, PickSession


@pytest.fixture
def pairs(data_root):
    review = open_set(data_root, 'dpo_annotations.json')
    with Journal(review, '医生1') as journal:
        yield PairSession(review, journal)


@pytest.fixture
def picking(pick_root):
    """A function that opens a session of a reviewer on the three images."""
    opened = []

    def start(reviewer='eye', **settings):
        candidates = read_candidates(pick_root)
        journal = PickJournal(candidates, reviewer)
        opened.append(journal)
        return PickSession(candidates, journal, **settings)

    yield start
    for journal in opened:
        journal.close()


def bits(content, shape):
    return (
        np.unpackbits(np.frombuffer(gzip.decompress(content), np.uint8))[: shape[0] * shape[1]]
        .reshape(shape)
        .astype(bool)
    )


def key_of(session, image):
    return next(key for key, name in session.keys.items() if name == image)


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_pairs_in_the_order_of_the_file(pairs):
    overview = pairs.overview()
    assert overview['mode'] == 'pairs' and overview['reviewer'] == '医生1'
    assert [item['key'] for item in overview['items']] == list(pairs.review.records)
    key = overview['items'][1]['key']
    assert pairs.decide(dict(key=key, decision='swap', seconds=1.5)) == dict(decision='swap', done=False)
    assert pairs.note(dict(key=key, note=' {x} <b> ')) == dict(note='{x} <b>')
    assert pairs.overview()['items'][1]['decision'] == 'swap' and pairs.overview()['items'][1]['note'] == '{x} <b>'


def test_what_is_shown_of_a_pair(pairs, data_root):
    key, record = next(iter(pairs.review.records.items()))
    item = pairs.item(key)
    assert (item['width'], item['height'], item['gt']) == (10, 8, False)
    assert item['chosen'] == dict(iou=0.8, source='greedy', score=None)
    content, kind = pairs.picture(key, 'chosen')
    mask = cv2.imread(str(data_root / record.chosen_mask), 0) > 127
    assert kind == BITS and (bits(content, mask.shape) == mask).all()
    image = cv2.imdecode(np.frombuffer(pairs.picture(key, 'image')[0], np.uint8), 1)
    assert (image == cv2.imread(str(data_root / record.image))).all()
    assert pairs.picture(key, 'thumbnail')[1] == 'image/jpeg'
    other = cv2.imread(str(data_root / record.rejected_mask), 0) > 127
    assert item['shares'] == pytest.approx([(mask & ~other).mean(), (other & ~mask).mean(), (mask & other).mean()])


def test_a_judge_of_any_name(data_root):
    content = json.loads((data_root / 'dpo_annotations.json').read_text())
    content[0].update(judge='best {of} two %s <b>', chosen_score=0.9, rejected_score=0.1)
    (data_root / 'dpo_annotations.json').write_text(json.dumps(content))
    review = open_set(data_root, 'dpo_annotations.json')
    with Journal(review, 'eye') as journal:
        item = PairSession(review, journal).item(next(iter(review.records)))
    assert item['judge'] == 'best {of} two %s <b>' and item['chosen']['score'] == 0.9


def test_ground_truth_where_there_is_one(data_root):
    content = json.loads((data_root / 'dpo_annotations.json').read_text())
    content[0]['gt_mask'] = 'masks/a_2.png'
    (data_root / 'dpo_annotations.json').write_text(json.dumps(content))
    review = open_set(data_root, 'dpo_annotations.json')
    first, second, _ = review.records
    with Journal(review, 'eye') as journal:
        session = PairSession(review, journal)
        mask = cv2.imread(str(data_root / 'masks/a_2.png'), 0) > 127
        assert session.item(first)['gt'] and (bits(session.picture(first, 'gt')[0], mask.shape) == mask).all()
        assert not session.item(second)['gt']
        with pytest.raises(KeyError):
            session.picture(second, 'gt')


@pytest.mark.parametrize('part', ['', '..', 'image.png', '../../etc/passwd', 'masks/a_0.png', '0', 'regions'])
def test_no_path_is_made_of_what_is_asked_for(pairs, picking, part):
    session = picking()
    for found, key in ((pairs, next(iter(pairs.review.records))), (session, next(iter(session.keys)))):
        if part not in ('0', 'regions') or found is pairs:
            with pytest.raises(KeyError):
                found.picture(key, part)
        with pytest.raises(KeyError):
            found.picture(part, 'image')
        with pytest.raises(KeyError):
            found.item(part)


@pytest.mark.parametrize(
    'body',
    [
        {},
        dict(key='x', decision='drop'),
        dict(key=['x'], decision='drop'),
        dict(key=None, decision='drop'),
        dict(decision='maybe'),
        dict(decision=['drop']),
        dict(decision='drop', seconds=-1),
        dict(decision='drop', seconds='1'),
        dict(decision='drop', seconds=float('nan')),
        dict(decision='drop', seconds=True),
    ],
)
def test_what_makes_no_sense_is_not_recorded(pairs, body):
    key = next(iter(pairs.review.records))
    if body and 'key' not in body:
        body = dict(body, key=key)
    before = pairs.journal.path.read_bytes()
    with pytest.raises(BadRequest):
        pairs.decide(body)
    for note in (dict(key=key, note='x' * 4001), dict(key=key, note=3), dict(key=[], note='x'), dict(note='x')):
        with pytest.raises(BadRequest):
            pairs.note(note)
    assert pairs.journal.path.read_bytes() == before


# --- picks -----------------------------------------------------------------------------------------------------------


def test_images_on_which_candidates_disagree_most_come_first(picking, pick_root):
    content = json.loads((pick_root / 'candidates.json').read_text())
    for entry, value in zip(content, (0.2, 0.7, 0.0)):
        entry['disagreement'] = value
    (pick_root / 'candidates.json').write_text(json.dumps(content))
    # Where all are the same there is nothing to pick.
    assert picking().order == ['images/b.png', 'images/a.png']


def test_the_order_of_candidates_is_shuffled_for_each_image_and_reviewer_and_stays(picking):
    orders = {}
    for number in range(40):
        session = picking(f'eye-{number}')
        orders[number] = [
            tuple(session.places(image, session.candidates.masks(image))) for image in ('images/b.png', 'images/c.png')
        ]
    again = picking('Eye-1'), picking('another')
    assert len({order for both in orders.values() for order in both}) == 6  # all orders of three occur
    assert any(b != c for b, c in orders.values())
    masks = again[0].candidates.masks('images/b.png')
    assert again[0].places('images/b.png', masks) == again[0].places('images/b.png', masks)
    # The fourth candidate of a repeats the second: it is shown once.
    assert sorted(again[0].places('images/a.png', again[0].candidates.masks('images/a.png'))) == [0, 1, 2]


def test_neither_source_nor_score_nor_index_is_told(picking):
    session = picking()
    key = key_of(session, 'images/a.png')
    told = json.dumps([session.item(key), session.overview()])
    for secret in ('greedy', 'flip', 'threshold', '0.8', 'candidates/', 'predicted', 'disagreement'):
        assert secret not in told
    assert set(session.item(key)) == {'key', 'image', 'width', 'height', 'candidates', 'codes', 'place', 'composite'}


def test_a_pick_is_of_what_was_shown_at_that_place(picking, pick_root):
    session = picking()
    for image in session.order:
        key, places = key_of(session, image), session.places(image, session.candidates.masks(image))
        for place, index in enumerate(places):
            mask = cv2.imread(str(pick_root / session.candidates.images[image].candidates[index].mask), 0) > 127
            assert (bits(session.picture(key, str(place))[0], mask.shape) == mask).all()
        session.decide(dict(key=key, pick=1, seconds=2))
        assert session.journal.picks[image].pick == places[1] and session.item(key)['place'] == 1
    assert session.done
    for word in ('none', 'equal'):
        assert session.decide(dict(key=key, pick=word))['decision'] == word
        assert session.item(key)['place'] is None


def test_the_budget_counts_images_and_earlier_sessions(picking):
    session = picking(clicks=2)
    first, second, third = session.keys
    assert not session.decide(dict(key=first, pick=0))['done']
    assert not session.decide(dict(key=first, pick=1))['done']  # a change of mind costs nothing
    session.journal.close()
    again = picking(clicks=2)
    assert again.decide(dict(key=second, pick='none'))['done'] and again.done
    with pytest.raises(Budget):
        again.decide(dict(key=third, pick=0))
    assert again.decide(dict(key=second, pick='equal'))['decision'] == 'equal'
    assert set(read_picks(again.candidates.root).agreed) == {again.keys[first], again.keys[second]}


def test_regions_put_together(picking, pick_root):
    # Masks by hand: all have the top row; places differ in two blocks.
    masks = np.zeros((3, 16, 20), bool)
    masks[:, 0] = True
    masks[0, 4:8, 2:6] = masks[1, 4:8, 12:16] = masks[2, 10:14, 2:6] = True
    for k, mask in enumerate(masks):
        cv2.imwrite(str(pick_root / f'candidates/c_{k}.png'), mask.astype(np.uint8) * 255)
    session = picking()
    key, places = (
        key_of(session, 'images/c.png'),
        session.places('images/c.png', session.candidates.masks('images/c.png')),
    )
    labels = np.frombuffer(gzip.decompress(session.picture(key, 'regions')[0]), '<i4').reshape(16, 20)
    item = session.item(key)
    assert len(item['codes']) == 3
    left, right = int(labels[5, 3]), int(labels[5, 13])
    assert item['codes'][left - 1] == 1 << places.index(0) and item['codes'][right - 1] == 1 << places.index(1)
    answer = session.decide(dict(key=key, pick=dict(regions=[left, right], base=places.index(0)), seconds=9, clicks=3))
    assert answer['decision'] == 'composite' and session.item(key)['composite']
    pick = session.journal.picks['images/c.png']
    assert pick.pick.sources == (0, 1) and pick.clicks == 3
    assert ((cv2.imread(str(pick_root / pick.pick.mask), 0) > 127) == (masks[0] | masks[1])).all()
    # Without a start, and in the order of what explains most.
    session.decide(dict(key=key, pick=dict(regions=[right], base=None)))
    assert session.journal.picks['images/c.png'].pick == 1  # one candidate as it is: no file of its own
    session.decide(dict(key=key, pick=dict(regions=[1, 2, 3], base=None)))
    assert set(session.journal.picks['images/c.png'].pick.sources) == {0, 1, 2}
    session.decide(dict(key=key, pick=dict(regions=[], base=None)))
    assert session.journal.picks['images/c.png'].pick == Composite(session.journal.picks['images/c.png'].pick.mask, ())


@pytest.mark.parametrize(
    'pick',
    [
        None,
        -1,
        3,
        1.0,
        True,
        '1',
        [],
        'x',
        dict(regions='x', base=None),
        dict(regions=[0], base=None),
        dict(regions=[10**6], base=None),
        dict(regions=[True], base=None),
        dict(regions=[], base=9),
        dict(regions=[], base='0'),
        dict(base=0),
    ],
)
def test_a_pick_that_makes_no_sense_is_not_recorded(picking, pick):
    session = picking()
    before = session.journal.path.read_bytes()
    for body in (
        dict(key=key_of(session, 'images/b.png'), pick=pick),
        dict(key=key_of(session, 'images/b.png'), pick=0, clicks=0),
        dict(key=[], pick=0),
        dict(pick=0),
    ):
        with pytest.raises(BadRequest):
            session.decide(body)
    assert session.journal.path.read_bytes() == before


def test_a_bad_picture_is_named_and_the_others_go_on(picking, pick_root):
    session = picking()
    (pick_root / 'images/b.png').write_bytes(b'no picture')
    with pytest.raises(InputError, match='b.png: cannot be read'):
        session.item(key_of(session, 'images/b.png'))
    assert session.item(key_of(session, 'images/c.png'))['candidates'] == 3
