"""The report's words in two languages (``assets/report/text.json``)."""
from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / 'assets' / 'report'
LANGUAGES = ('en', 'zh')


@lru_cache(maxsize=1)
def tables() -> dict[str, dict[str, str]]:
    """Language -> key -> text."""
    return json.loads((ASSETS / 'text.json').read_text(encoding='utf-8'))


class Text:
    """The words of one language: ``text('axis_before', metric='Dice')``.

    Args:
        language: one of ``LANGUAGES``.

    Raises:
        KeyError: there is no such language, text or place in it; a defect, not a user's mistake.
    """

    def __init__(self, language: str = 'en') -> None:
        self.language, self._table = language, tables()[language]

    def __call__(self, key: str, **values: object) -> str:
        return self._table[key].format(**values)
