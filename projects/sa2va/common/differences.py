"""Where two records of a run differ."""
from __future__ import annotations

import json
from typing import Any, Iterable, Iterator, Mapping


def differences(was: Any, now: Any, free: Iterable[str] = ()) -> list[str]:
    """Where two identities differ, each as ``name: was X, is Y``; names are dotted, those in ``free`` left out."""
    first, second = dict(flat(was)), dict(flat(json.loads(json.dumps(now, default=str))))
    free = tuple(free)
    found = []
    for name in sorted({**first, **second}):
        if name in free or any(name.startswith(f'{prefix}.') for prefix in free):
            continue
        if name not in first:
            found.append(f'{name}: was not there, is {_short(second[name])}')
        elif name not in second:
            found.append(f'{name}: was {_short(first[name])}, is not there')
        elif first[name] != second[name]:
            old, new = _short(first[name]), _short(second[name])
            found.append(f'{name}: its content has changed' if _is_hash(first[name]) and _is_hash(second[name]) else
                         f'{name}: was {old}, is {new}')
    return found


def flat(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in nested mappings; an empty mapping is a value."""
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from flat(below, f'{name}.{key}' if name else str(key))
    else:
        yield name, value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + '...'


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) in (32, 64) and all(c in '0123456789abcdef' for c in value)
