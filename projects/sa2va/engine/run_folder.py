"""The work directory of a run, read: its checkpoints, the history of its validations, the best file that it names.

Who writes it, and in which order, is ``checkpointing.py``.
"""
from __future__ import annotations

import re
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import hash_file, read_json, remove, writing

HISTORY_FILE, ALARM_FILE, LAST_FILE = 'val_history.json', 'alarms.json', 'last_checkpoint'
CHECKPOINT = re.compile(r'iter_(\d+)\.pth')
BEST = re.compile(r'best_.+_iter_(\d+)\.pth')
_AGAIN = 'resume the training, which writes it again'


@dataclass(frozen=True)
class Selection:
    """What a finished run has to offer.

    Attributes:
        checkpoint: best file of training; None where no validated step is better than the start, or none was validated.
        best: the best value of the metric over training steps; None where none was validated.
        start: the value of the untouched start; None where it was not validated.
    """

    checkpoint: Path | None
    best: float | None
    start: float | None


def read_history(work_dir: str | Path, name: str = HISTORY_FILE) -> list[dict]:
    """The validations of a run so far, oldest first (or, by ``name``, its alarms); empty where there was none.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(work_dir) / name
    return read_json(path, _AGAIN, kind=list) if path.is_file() else []


def select(work_dir: str | Path, metric: str = 'dice') -> Selection:
    """The best checkpoint that the history of a run names, if it beats the start (larger is better).

    Raises:
        InputError: no history, or the file that it names is missing or not the one that was written.
    """
    path = Path(work_dir) / HISTORY_FILE
    history = read_json(path, 'resume the training', 'train first, with validation', kind=list)
    start = next((entry.get(metric) for entry in history if entry['iter'] == 0), None)
    trained = [entry[metric] for entry in history if entry['iter'] > 0 and entry.get(metric) is not None]
    best = max(trained, default=None)
    named = best_entry(history)
    if named is None or best is None or (start is not None and best <= start):
        return Selection(None, best, start)
    file = Path(work_dir) / named['checkpoint']
    if not file.is_file():
        raise InputError(f'{file}: missing, {HISTORY_FILE} names it as the best: {_AGAIN}')
    check_best(file, history)
    return Selection(file, best, start)


def check_best(file: Path, history: list[dict]) -> None:
    """Raises InputError where the history holds another hash of this file than it has."""
    entry = next((entry for entry in history if entry.get('checkpoint') == file.name), {})
    if entry.get('sha256') not in (None, hash_file(file)):
        raise InputError(
            f'{file}: is not what was written at iteration {entry["iter"]} (its hash in {HISTORY_FILE} is another): '
            f'{_AGAIN}'
        )


def newest_whole(work_dir: str | Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a folder that is complete, and a line about every newer one that is not."""
    found = sorted(((int(match.group(1)), path) for path in Path(work_dir).glob('iter_*.pth')
                    if (match := CHECKPOINT.fullmatch(path.name))), reverse=True)
    lines = []
    for _, path in found:
        problem = damage(path)
        if problem is None:
            return path, lines
        lines.append(f'{path}: {problem}; the one before is used')
    return None, lines


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every torch file in it is a whole zip whose checksums hold."""
    files = [path] if path.is_file() else sorted([*path.glob('*.pt'), *path.glob('*.pth')])
    if not files:
        return 'holds no tensors'
    for file in files:
        try:
            with zipfile.ZipFile(file) as content:
                bad = content.testzip()
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            return f'is not whole ({file.name}: {error})'
        if bad is not None:
            return f'is damaged ({file.name}: {bad})'
    return None


def set_aside(work_dir: Path, step: int, best: str | None) -> list[str]:
    """Move what does not belong to a run at ``step`` into ``earlier_<time>``: checkpoints and best files of later steps
    or of another run. Nothing is lost and nothing is mixed. Unfinished files are removed.

    Args:
        step: 0 at a new start.
        best: name of the best file that stays.

    Returns:
        Lines for the log.
    """
    for left in work_dir.glob('.*.pth.part'):
        remove(left)
    for left in work_dir.glob('.*.pth.old'):
        remove(left)
    going = [path for path in work_dir.glob('iter_*.pth')
             if (match := CHECKPOINT.fullmatch(path.name)) and (int(match.group(1)) > step or step == 0)]
    going += [path for path in work_dir.glob('best_*.pth') if path.name != best]
    if step == 0:
        going += [work_dir / name for name in (HISTORY_FILE, ALARM_FILE, LAST_FILE) if (work_dir / name).exists()]
    if not going:
        return []
    target = work_dir / f'earlier_{time.strftime("%Y%m%d_%H%M%S")}'
    while target.exists():
        target = target.with_name(target.name + '_')
    with writing(target):
        target.mkdir()
        for path in going:
            path.rename(target / path.name)
    return [
        f'{target}: here are now {", ".join(sorted(path.name for path in going))}, which are not of this run at '
        f'iteration {step}'
    ]


def best_entry(history: list[dict]) -> dict | None:
    """The last entry of a history that names a best file, or None."""
    return next((entry for entry in reversed(history) if 'checkpoint' in entry), None)
