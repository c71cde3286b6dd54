"""Names of reviewers in any script, and the part of a file name that stands for each."""
from __future__ import annotations

import hashlib
import re
import unicodedata

from sa2va_dpo.common.errors import InputError

_LONGEST = 100


def reviewer_name(name: str) -> str:
    """The name in its normal form (NFC, no blanks around it): two spellings of one name are one reviewer.

    Raises:
        InputError: empty, longer than 100 characters, or with characters that cannot be shown (control characters,
            half a surrogate pair).
    """
    found = unicodedata.normalize('NFC', name).strip()
    if not found or len(found) > _LONGEST:
        raise InputError(f'--reviewer {name[:40]!r}: must be 1 to {_LONGEST} characters')
    if any(unicodedata.category(letter) in ('Cc', 'Cs', 'Zl', 'Zp') for letter in found):
        raise InputError(f'--reviewer {name!r}: holds characters that cannot be shown: choose another name')
    return found


def reviewer_key(name: str) -> str:
    """What stands for a reviewer in file names: the name itself where it is 1 to 64 ASCII letters, digits, ``-`` and
    ``_``, else those of its letters and a hash behind ``~``, which no plain name holds.

    Raises:
        InputError: see :func:`reviewer_name`.
    """
    name = reviewer_name(name)
    if re.fullmatch(r'[A-Za-z0-9_-]{1,64}', name):
        return name
    plain = unicodedata.normalize('NFKD', name).encode('ascii', 'ignore').decode()
    plain = re.sub(r'[^A-Za-z0-9_-]+', '-', plain).strip('-')[:24]
    return f'{plain}~{hashlib.blake2b(name.encode(), digest_size=5).hexdigest()}'
