"""Journal, merge, agreement and pictures, without a browser."""
import json

import numpy as np
import pytest

from sa2va_dpo.commands.review import main
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import read_pairs
from sa2va_dpo.datasets.dpo_vessel_dataset import DPOVesselDataset
from sa2va_dpo.review.agreement import cohens_kappa, compare
from sa2va_dpo.review.journal import Journal, read_decisions
from sa2va_dpo.review.merge import merge
from sa2va_dpo.review.pairs import exchange, open_set
from sa2va_dpo.review.picture import BOTH, ONLY_CHOSEN, ONLY_REJECTED, difference, load

# --- journal -------------------------------------------------------------------------------------------------------


def test_every_decision_is_on_disk_at_once_and_the_last_one_wins(review):
    first = next(iter(review.records))
    with Journal(review, 'eye') as journal:
        for count, decision in enumerate(('accept', 'drop', 'swap'), 1):
            journal.decide(first, decision)
            lines = journal.path.read_text().splitlines()
            assert len(lines) == 1 + count and json.loads(lines[-1])['decision'] == decision
        with pytest.raises(ValueError, match='decision must be one of'):
            journal.decide(first, 'maybe')
    assert read_decisions(review, 'eye') == {first: 'swap'}


@pytest.mark.parametrize('torn', [b'{"pair": "', b'{"pair": "x", "decision": "drop"}'])
def test_a_last_line_cut_short_is_forgotten(review, torn, decide):
    decide(review, 'eye', ['accept'])
    path = review.journal('eye')
    path.write_bytes(path.read_bytes() + torn)
    decide(review, 'eye', [None, 'drop'])
    assert list(read_decisions(review, 'eye').values()) == ['accept', 'drop']
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_one_process_at_a_time(review):
    with Journal(review, 'eye'), pytest.raises(InputError, match='open in another review'):
        Journal(review, 'eye')


@pytest.mark.parametrize('line, words', [
    ('nonsense', 'line 2 is no JSON object'), ('[1]', 'line 2 is no JSON object'),
    ('{"pair": "unknown", "decision": "drop"}', "pair 'unknown' is not in"),
    ('{"pair": 3, "decision": "drop"}', 'pair 3 is not in')])
def test_a_bad_line_is_named(review, line, words, decide):
    decide(review, 'eye', [])
    path = review.journal('eye')
    path.write_text(path.read_text() + line + '\n')
    with pytest.raises(InputError, match=words):
        read_decisions(review, 'eye')


def test_the_journal_of_another_data_set_is_refused(review, decide):
    decide(review, 'eye', ['accept'])
    path = review.journal('eye')
    path.write_text(path.read_text().replace(review.fingerprint, '0' * 32))
    with pytest.raises(InputError, match='another data set'):
        read_decisions(review, 'eye')


# --- merge ---------------------------------------------------------------------------------------------------------


def test_exchange_keeps_every_number_with_its_mask(review):
    record = next(iter(review.records.values()))
    swapped = exchange(record)
    assert (swapped.chosen_mask, swapped.chosen_iou, swapped.chosen_source) == ('masks/a_1.png', 0.6, 'threshold:0.9')
    assert (swapped.rejected_mask, swapped.rejected_iou, swapped.iou_gap) == ('masks/a_0.png', 0.8, pytest.approx(-0.2))
    assert (swapped.extra['chosen_dice'], swapped.extra['rejected_dice']) == (0.6, 0.9)
    assert swapped.extra['chosen_agreement'] == 0.25 and 'rejected_over_segments' not in swapped.extra


def test_merge_then_change_of_mind(review, data_root, decide):
    mined = review.annotations.read_bytes()
    decide(review, 'eye', ['accept', 'swap', 'drop'])
    counts = merge(review, ['eye']).counts
    assert counts == dict(accept=1, swap=1, drop=1)
    merged = read_pairs(review.annotations, data_root)
    assert [r.extra['reviewed'] for r in merged] == ['accept', 'swap'] and merged[1].iou_gap < 0
    assert review.original.read_bytes() == mined
    # From the backup: the dropped pair comes back, the swapped one turns round again.
    again = open_set(data_root, 'dpo_annotations.json')
    assert list(again.records) == list(review.records) and again.fingerprint == review.fingerprint
    decide(again, 'eye', ['accept', 'accept', 'accept'])
    merge(again, ['eye'])
    assert [r.iou_gap for r in read_pairs(again.annotations, data_root)] == pytest.approx([0.2, 0.3, 0.4])


def test_nothing_decided_or_nothing_left_is_refused_and_nothing_written(review, decide):
    before = review.annotations.read_bytes()
    for decisions, words in (
        ([], 'decided on no pair'),
        (['skip'], 'decided on no pair'),
        (['drop'] * 3, 'dropped every pair'),
    ):
        decide(review, 'eye', decisions)
        with pytest.raises(InputError, match=words):
            merge(review, ['eye'])
    assert review.annotations.read_bytes() == before and not review.original.exists()


def test_training_takes_the_experts_word(review, data_root, repo_root, decide):
    decide(review, 'eye', ['swap', 'drop', 'drop'])
    merge(review, ['eye'])
    dataset = DPOVesselDataset(str(data_root), str(repo_root / 'projects/sa2va/assets/tiny_sa2va'), score_size=16,
                               min_iou_gap=0.05)
    assert dataset.num_pairs == 1 and dataset[0]['gaps'][0] > 0


# --- agreement -----------------------------------------------------------------------------------------------------


def test_kappa_by_hand():
    # Cohen's 2 x 2: 35 of 50 agree, chance 0.5 x 0.6 + 0.5 x 0.4 = 0.5: (0.7 - 0.5) / 0.5 = 0.4.
    assert cohens_kappa([[20, 5], [10, 15]]) == pytest.approx(0.4)
    assert cohens_kappa([[5, 0, 0], [0, 3, 0], [0, 0, 2]]) == 1
    assert cohens_kappa([[5, 5], [5, 5]]) == 0
    assert cohens_kappa([[7, 0], [0, 0]]) is None and cohens_kappa([[0, 0], [0, 0]]) is None


def test_compare_counts_pairs_that_both_decided():
    report = compare(dict(p='accept', q='swap', r='skip', s='drop'), dict(p='accept', q='drop', r='drop', t='swap'))
    assert report['pairs'] == 2 and report['observed_agreement'] == 0.5
    assert report['confusion'] == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert report['disagreements'] == [dict(pair='q', first='swap', second='drop')]


def test_export_names_the_pairs(review, data_root, tmp_path, capsys, decide):
    decide(review, 'eye', ['accept', 'swap', 'drop'])
    decide(review, 'other', ['accept', 'accept', 'drop'])
    out = tmp_path / 'agreement.json'
    assert main(['--data_root', str(data_root), '--reviewer', 'eye', 'other', '--export', str(out)]) == 0
    report = json.loads(out.read_text())
    # Two of three agree; chance 1/3 x 2/3 + 1/3 x 0 + 1/3 x 1/3 = 1/3: (2/3 - 1/3) / (2/3) = 0.5.
    assert report['kappa'] == pytest.approx(0.5)
    assert report['disagreements'][0]['chosen_mask'] == 'masks/a_0.png'
    assert "Cohen's kappa 0.5000" in capsys.readouterr().out


# --- pictures and bad input ------------------------------------------------------------------------------------------


def test_difference_colours():
    image = np.full((1, 4, 3), 100, np.uint8)
    picture = difference(image, np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 1, 0]], bool))
    assert [tuple(p) for p in picture[0].tolist()] == [BOTH, ONLY_CHOSEN, ONLY_REJECTED, (45, 45, 45)]


def test_masks_of_another_size_are_named(review, data_root):
    import cv2

    cv2.imwrite(str(data_root / 'masks/a_1.png'), np.zeros((4, 4), np.uint8))
    with pytest.raises(InputError, match=r'masks/a_1.png: is 4 x 4 pixels'):
        load(data_root, next(iter(review.records.values())))


@pytest.mark.parametrize(
    'argv, words',
    [
        (['--reviewer', 'a\x00b'], 'cannot be shown'),
        (['--reviewer', ' '], '1 to 100 characters'),
        (['--reviewer', 'a', 'b'], 'one name'),
        (['--reviewer', 'a', '--export', 'x.json'], 'two different names'),
        (['--reviewer', 'a', '--merge'], 'no journal'),
        (['--reviewer', 'a', '--ann_file', '../x.json'], 'without a folder'),
        (['--reviewer', 'a', '--ann_file', 'none.json'], 'none.json'),
        (['--reviewer', 'a', '--port', '65536'], '--port'),
        (['--reviewer', 'a', '--host', 'no such host'], '--host'),
    ],
)
def test_bad_flags_say_what_is_wrong(data_root, argv, words):
    with pytest.raises(InputError, match=words) as error:
        main(['--data_root', str(data_root), *argv])
    assert '\n' not in str(error.value)


def test_missing_folder_and_empty_list(tmp_path, data_root):
    with pytest.raises(InputError, match='no such folder'):
        main(['--data_root', str(tmp_path / 'none'), '--reviewer', 'a'])
    (data_root / 'dpo_annotations.json').write_text('[]')
    with pytest.raises(InputError, match='empty list'):
        main(['--data_root', str(data_root), '--reviewer', 'a'])


def test_a_busy_port_is_said(data_root):
    import socket

    with socket.socket() as busy:
        busy.bind(('127.0.0.1', 0))
        busy.listen(1)
        with pytest.raises(InputError, match='cannot be listened on'):
            main(['--data_root', str(data_root), '--reviewer', 'a', '--port', str(busy.getsockname()[1])])
