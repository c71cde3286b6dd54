"""Several reviewers joined: nobody is dropped, and who differ are listed."""
import json
import os
import subprocess
import sys

import pytest

from sa2va_dpo.commands.review import main
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.annotations import read_pairs
from sa2va_dpo.review.journal import Journal, read_decisions, read_notes
from sa2va_dpo.review.merge import joined, merge, record_path
from sa2va_dpo.review.pairs import open_set


def merged_by(review):
    return [(r.extra.get('reviewed'), r.extra.get('reviewers')) for r in read_pairs(review.annotations, review.root)]


def test_what_reviewers_say_together():
    table = [(['accept', 'accept'], 'accept'), (['accept', 'swap'], 'conflict'), (['skip', 'drop'], 'drop'),
             (['skip', None], 'skip'), ([None, None], 'undecided'), (['accept', 'accept', 'drop'], 'conflict')]
    for said, expected in table:
        assert joined({str(k): {'p': word} if word else {} for k, word in enumerate(said)}, 'p') == expected


def test_two_reviewers_at_once(review, decide):
    decide(review, 'A', ['accept', 'swap', None])
    decide(review, '医生1', ['accept', 'drop', 'swap'])
    result = merge(review, ['A', '医生1'])
    assert result.counts == dict(accept=1, conflict=1, swap=1)
    second = list(review.records)[1]
    assert result.conflicts == {second: {'A': 'swap', '医生1': 'drop'}}
    assert merged_by(review) == [('accept', ['A', '医生1']), (None, None), ('swap', ['医生1'])]
    # As mined: the masks of the pair in conflict are where they were.
    assert read_pairs(review.annotations, review.root)[1].chosen_mask == review.records[second].chosen_mask
    assert result.agreement['A', '医生1']['pairs'] == 2 and result.agreement['A', '医生1']['observed_agreement'] == 0.5
    record = json.loads(record_path(review).read_text())
    assert record['reviewers'] == ['A', '医生1'] and record['conflicts'][0]['image'] == 'images/a.png'


def test_a_second_reviewers_merge_keeps_the_first_ones_decisions(review, data_root, decide):
    decide(review, 'A', ['drop', 'swap', None])
    merge(review, ['A'])
    assert merged_by(review) == [('swap', ['A']), (None, None)]
    again = open_set(data_root, 'dpo_annotations.json')
    decide(again, 'B', [None, None, 'accept'])
    result = merge(again, ['B'])
    assert set(result.reviewers) == {'A', 'B'} and result.counts == dict(drop=1, swap=1, accept=1)
    assert merged_by(again) == [('swap', ['A']), ('accept', ['B'])]
    # And once more: nothing changes.
    before = again.annotations.read_bytes()
    merge(open_set(data_root, 'dpo_annotations.json'), ['A'])
    assert (
        sorted(merged_by(again)) == sorted([('swap', ['A']), ('accept', ['B'])])
        and again.annotations.read_bytes() == before
    )


def test_a_merge_of_an_earlier_version_is_joined_too(review, data_root, decide):
    decide(review, 'A', ['drop', 'swap', None])
    merge(review, ['A'])
    record_path(review).unlink()
    text = review.annotations.read_text().replace('"reviewers": [\n   "A"\n  ]', '"reviewer": "A"')
    assert '"reviewer": "A"' in text
    review.annotations.write_text(text)
    again = open_set(data_root, 'dpo_annotations.json')
    decide(again, 'B', [None, None, 'accept'])
    assert merge(again, ['B']).counts == dict(drop=1, swap=1, accept=1)


def test_a_merged_reviewers_journal_that_is_gone_is_said_and_nothing_written(review, data_root, decide):
    decide(review, 'A', ['drop', None, None])
    merge(review, ['A'])
    decide(review, 'B', ['accept', None, None])
    review.journal('A').unlink()
    before = review.annotations.read_bytes()
    with pytest.raises(InputError, match='A was merged before and the journal is gone'):
        merge(open_set(data_root, 'dpo_annotations.json'), ['B'])
    assert review.annotations.read_bytes() == before


def test_one_merge_at_a_time(review, decide):
    decide(review, 'A', ['drop', None, None])
    from sa2va_dpo.common.ownership import lock

    with lock(review.root, 'generation'), pytest.raises(InputError, match='writing there already'):
        merge(review, ['A'])
    assert merge(review, ['A']).counts == dict(drop=1, undecided=2)


def test_notes_travel_with_the_pair(review):
    first = next(iter(review.records))
    with Journal(review, 'A') as journal:
        journal.decide(first, 'accept', 3.456)
        journal.note(first, 'zu dünn {x}\n第二行 "q"')
        journal.note(first, 'thin ∅ \ud800 {x}')
        with pytest.raises(ValueError, match='at most'):
            journal.note(first, 'x' * 4001)
    assert read_decisions(review, 'A') == {first: 'accept'} and read_notes(review, 'A') == {first: 'thin ∅ ? {x}'}
    assert '"seconds": 3.46' in review.journal('A').read_text()
    merge(review, ['A'])
    assert read_pairs(review.annotations, review.root)[0].extra['review_notes'] == {'A': 'thin ∅ ? {x}'}
    with Journal(review, 'A') as journal:
        journal.note(first, '')
    assert read_notes(review, 'A') == {}


def test_the_journal_of_another_reviewer_is_refused(review, decide):
    decide(review, 'A', ['accept'])
    review.journal('A').rename(review.journal('B'))
    with pytest.raises(InputError, match="journal of 'A', not of 'B'"):
        Journal(review, 'B')


def test_a_full_disk_loses_no_earlier_decision(review, data_root):
    """RLIMIT_FSIZE in a process of its own: the line that does not fit is taken back whole."""
    code = f'''
import resource, signal, sys
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.review.journal import Journal
from sa2va_dpo.review.pairs import open_set
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
review = open_set({str(data_root)!r}, 'dpo_annotations.json')
ids = list(review.records)
with Journal(review, 'A') as journal:
    journal.decide(ids[0], 'accept')
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 20, -1))
    try:
        journal.decide(ids[1], 'drop')
        sys.exit('took it')
    except InputError as error:
        assert 'could not be written' in str(error), error
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    journal.decide(ids[2], 'swap')
'''
    subprocess.run(
        [sys.executable, '-c', code], check=True, env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    )
    ids = list(review.records)
    assert read_decisions(review, 'A') == {ids[0]: 'accept', ids[2]: 'swap'}


def test_the_command_lists_conflicts(review, data_root, capsys, decide):
    decide(review, 'A', ['accept', 'swap', 'accept'])
    decide(review, 'B {x}', ['accept', 'drop', 'accept'])
    assert main(['--data_root', str(data_root), '--reviewer', 'A', 'B {x}', '--merge']) == 0
    out = capsys.readouterr().out
    assert '1 conflict' in out and 'A: swap, B {x}: drop' in out and 'images/a.png' in out and 'kappa' in out
