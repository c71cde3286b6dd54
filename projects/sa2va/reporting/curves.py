"""What a training run wrote about itself, and its figures."""
from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Mapping, Sequence

from markupsafe import Markup

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import read_json
from sa2va_dpo.engine.round_state import ROUNDS_FILE
from sa2va_dpo.engine.run_folder import ALARM_FILE, HISTORY_FILE, best_entry

from .figures import Marks, Series, curve
from .svg import BLUE, GREY, ORANGE
from .text import Text

SCALARS = '*/vis_data/scalars.json'
_AGAIN = 'resume the training, which writes it again'


@dataclass(frozen=True)
class Training:
    """A run's own figures.

    Attributes:
        scalars: name -> (iterations, values), as logged.
        history: of validations (``val_history.json``); empty without validation.
        alarms: entries of ``alarms.json``.
        rounds: ``rounds.json``; None for a run without rounds.
    """

    scalars: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    alarms: list[dict] = field(default_factory=list)
    rounds: dict | None = None

    @classmethod
    def read(cls, folder: Path) -> 'Training':
        """Of a work directory of training; what is not there is empty.

        Raises:
            InputError: a file is damaged.
        """
        def content(name: str, kind: type) -> Any:
            path = folder / name
            return read_json(path, _AGAIN, kind=kind) if path.is_file() else None

        return cls(_scalars(folder), content(HISTORY_FILE, list) or [], content(ALARM_FILE, list) or [],
                   content(ROUNDS_FILE, dict))


def _scalars(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """All attempts of a run joined: a resumed one replaces what an earlier one logged from its first step on."""
    lines: list[dict] = []
    for path in sorted(folder.glob(SCALARS)):
        new = [line for line in map(_parsed, path.read_text(encoding='utf-8').splitlines()) if line is not None]
        if new:
            first = min(line['step'] for line in new)
            lines = [line for line in lines if line['step'] < first] + new
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != 'step' and isinstance(value, (int, float)):
                steps, values = found.setdefault(name, ([], []))
                steps.append(line['step'])
                values.append(float(value))
    return found


def _parsed(text: str) -> dict | None:
    """A line of the log; a killed run may have left the last one unfinished."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get('step'), int) else None


def figures(training: Training, taken: int | None, text: Text) -> list[Markup]:
    """Losses, accuracy, validation Dice and rewards over iterations; those that there is data for.

    Args:
        taken: iteration of the checkpoint that was exported.
    """
    marks = Marks(
        alarms=[alarm['iter'] for alarm in training.alarms],
        rounds=[record['iteration'] for record in (training.rounds or {}).get('rounds', [])],
        taken=taken,
    )

    def logged(name: str, label: str, colour: str = BLUE, dashed: bool = False) -> list[Series]:
        steps, values = training.scalars.get(name, ([], []))
        return [Series(label, steps, values, colour, dashed, points=len(steps) < 3)] if steps else []

    def validated(name: str, label: str, colour: str = BLUE, dashed: bool = False) -> list[Series]:
        known = [(entry['iter'], entry[name]) for entry in training.history if entry.get(name) is not None]
        return [Series(label, *map(list, zip(*known)), colour, dashed, points=True)] if known else []

    wanted = [
        ('loss', 'axis_loss', [*logged('train/loss', text('line_loss')),
                               *logged('dpo_loss', text('line_dpo_loss'), ORANGE),
                               *logged('train/supervised_loss', text('line_supervised_loss'), GREY, dashed=True)]),
        ('dice', 'axis_dice', [*validated('dice', text('line_dice')),
                               *validated('cldice', text('line_cldice'), GREY, dashed=True)]),
        ('accuracy', 'axis_accuracy', [*logged('accuracy', text('line_train'), ORANGE),
                                       *_later(validated('pairs/accuracy', text('line_validation')))]),
        ('rewards', 'axis_rewards', [*logged('chosen_rewards', text('chosen')),
                                     *logged('rejected_rewards', text('rejected'), ORANGE),
                                     *logged('margin', text('line_margin'), GREY, dashed=True)]),
    ]
    return [curve(name, lines, text(label), marks if name in ('dice', 'accuracy') else Marks(rounds=marks.rounds), text)
            for name, label, lines in wanted if lines]


def _later(lines: Sequence[Series]) -> list[Series]:
    """Without the start: before the first step policy and reference are one, no pair is preferred."""
    return [replace(line, x=line.x[1:], y=line.y[1:]) if line.x[0] == 0 else line for line in lines
            if line.x[0] != 0 or len(line.x) > 1]


def taken_iteration(history: Sequence[Mapping[str, Any]], checkpoint: str | None) -> int | None:
    """The iteration of an exported checkpoint, from its name or, where it is the best one, the history."""
    if checkpoint is None:
        return None
    digits = Path(checkpoint).stem.rpartition('_')[2]
    if digits.isdecimal():
        return int(digits)
    best = best_entry(list(history))
    return None if best is None else best['iter']


def check_readable(training: Training) -> None:
    """Raises InputError where the history or the alarms are lists of something else."""
    for name, entries in ((HISTORY_FILE, training.history), (ALARM_FILE, training.alarms)):
        if not all(isinstance(entry, dict) and isinstance(entry.get('iter'), int) for entry in entries):
            raise InputError(f'{name}: every entry must have its iteration: {_AGAIN}')
