"""What is finished, line by line: a command that was killed goes on behind the last whole line."""
from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from .files import write_text


class Journal:
    """A file of JSON lines, each on the disk when :meth:`append` returns, which any thread may call.

    The first line says whose journal it is. One of another run is begun anew; a line cut short by a kill is removed.

    Args:
        path: of the file.
        head: the first line; ``fingerprint`` in it tells one run from another.
    """

    def __init__(self, path: Path, head: dict) -> None:
        lines = read_lines(path) if path.is_file() else []
        if not lines or lines[0].get('fingerprint') != head['fingerprint']:
            lines = [head]
        write_text(path, ''.join(json.dumps(line) + '\n' for line in lines))
        self._file = open(path, 'a', encoding='utf-8')
        self._one_at_a_time = threading.Lock()

    def append(self, entry: dict) -> None:
        with self._one_at_a_time:
            self._file.write(json.dumps(entry) + '\n')
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict]:
    """The lines of a journal up to the first that is not whole."""
    lines = []
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break  # the line that a kill cut short, and nothing after it
    return lines
