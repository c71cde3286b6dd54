"""Tables of words in two languages (``assets/*/text.json``)."""
from __future__ import annotations

import re
from typing import Any, Collection, Mapping


def places(text: str) -> list[str]:
    """What is filled in: the names in braces."""
    return sorted(re.findall(r'\{(\w+)\}', text))


def assert_languages_agree(table: Mapping[str, Mapping[str, Any]], alike: Collection[str] = ()) -> None:
    """Both languages say the same things, fill in the same places, and are two.

    Args:
        alike: keys whose text may be the same in both (names, numbers).
    """
    assert list(table) == ['en', 'zh']
    english, chinese = table['en'], table['zh']
    assert set(english) == set(chinese)
    texts = {key: text for key, text in english.items() if isinstance(text, str)}
    assert [key for key, text in texts.items() if places(text) != places(chinese[key])] == []
    assert {key for key, text in texts.items() if text == chinese[key]} <= set(alike)
