"""JSON, strictly: no name twice in an object, no NaN or infinity, no half of a surrogate pair, sizes within
``limits.py``."""
from __future__ import annotations

import json
import re
from typing import Any

from .limits import limit, variable_of


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text under these rules.

    Raises:
        ValueError: it breaks one of them; the text says which.
    """
    try:
        text = content if isinstance(content, str) else content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'not UTF-8 text ({error.reason} at byte {error.start})') from None
    deepest = limit('json_depth')
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer,
                           parse_float=_float)
    except RecursionError:
        raise ValueError(f'not valid JSON (nested deeper than {deepest})') from None
    except ValueError as error:
        raise ValueError(f'not valid JSON ({error})') from None
    _walk(value, deepest, surrogates=re.search(r'\\u[dD][89a-fA-F]', text) is not None)
    return value


def _object(items: list[tuple[str, Any]]) -> dict:
    entry = dict(items)
    if len(entry) != len(items):
        names = [name for name, _ in items]
        raise ValueError(f'field {next(n for n in names if names.count(n) > 1)!r} stands twice in one record')
    return entry


def _constant(name: str):
    raise ValueError(f'{name} is not a number')


def _integer(digits: str) -> int:
    if len(digits) > limit('json_digits'):
        raise ValueError(f'an integer of {len(digits)} digits')
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float('inf'), float('-inf')):
        raise ValueError(f'{digits[:20]} is larger than any number')
    return value


def _walk(value: Any, deepest: int, surrogates: bool) -> None:
    """Refuses nesting below ``deepest`` levels and, where there may be some, text with half a surrogate pair."""
    level = [value]
    depth = 0
    while level:
        below = []
        for node in level:
            children = (*node.values(), *(node if surrogates else ())) if isinstance(node, dict) else (
                node if isinstance(node, list) else (node,))
            for child in children:
                if isinstance(child, (dict, list)):
                    below.append(child)
                elif surrogates and isinstance(child, str) and any('\ud800' <= c <= '\udfff' for c in child):
                    raise ValueError(f'not valid JSON (half a surrogate pair in {child[:20]!r})')
        depth += 1
        if depth > deepest:
            raise ValueError(f'not valid JSON (nested deeper than {deepest}; {variable_of("json_depth")} raises it)')
        level = below


def named(value: Any) -> str:
    """What a JSON value is, in words."""
    return {dict: 'an object', list: 'a list', str: 'text', bool: 'true or false', type(None): 'null'}.get(
        type(value), 'a number')
