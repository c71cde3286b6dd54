"""Names in any script and what stands for them in file names."""
import re
import unicodedata

import pytest

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.review.reviewers import reviewer_key, reviewer_name

NAMES = [
    '医生1',
    'Dr. Müller',
    '../../etc/passwd',
    'best {of} two',
    'a/b\\c',
    'عين',
    '👁',
    'a' * 65,
    '..',
    'CON:',
    '%s %d',
    'x~y',
]


def test_a_plain_name_is_its_own_key():
    for name in ('eye-1', 'A_b', 'a' * 64):
        assert reviewer_key(name) == name


def test_any_other_name_has_a_key_of_its_own_that_is_safe_in_a_file_name():
    keys = [reviewer_key(name) for name in NAMES]
    assert len(set(keys)) == len(NAMES)
    for key in keys:
        assert re.fullmatch(r'[A-Za-z0-9_-]{0,24}~[0-9a-f]{10}', key)
    assert reviewer_key('Dr. Müller').startswith('Dr-Muller~')


def test_two_spellings_of_one_name_are_one_reviewer():
    composed, split = unicodedata.normalize('NFC', 'Müller'), unicodedata.normalize('NFD', 'Müller')
    assert composed != split
    assert reviewer_key(composed) == reviewer_key(split) == reviewer_key(f' {composed} ')
    assert reviewer_name(split) == composed


@pytest.mark.parametrize('name', ['', '  ', 'a' * 101, 'a\nb', 'a\x00', '\udcff', 'a\u2028b'])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(InputError, match='--reviewer') as error:
        reviewer_name(name)
    str(error.value).encode()  # can be printed
