"""``rounds.json`` of a work directory: what every round was, written before anything depends on it."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

from mmengine.dist import barrier, is_main_process

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import read_json, write_json

ROUNDS_FILE, ROUNDS_FOLDER, WAITING_FILE = 'rounds.json', 'rounds', 'waiting.json'


class RoundState:
    """The rounds of a run so far, the same on every process.

    The file holds ``rounds``, a list of ``{"round", "iteration", "policy", "seconds", "labelled", "unlabelled",
    "judge", "judge_agreement", "metric", "metric_after", "decision"}`` (docs/rounds.md explains them), and ``ended``:
    why the run ended early, or null.

    Args:
        work_dir: of the run.
    """

    def __init__(self, work_dir: str | Path) -> None:
        self.work_dir = Path(work_dir)
        self.path = self.work_dir / ROUNDS_FILE
        self.rounds: list[dict[str, Any]] = []
        self.ended: str | None = None

    def read(self, iteration: int) -> None:
        """What the file says about a run that stands at ``iteration``; what lies after it never happened.

        Raises:
            InputError: it is no such file.
        """
        self.rounds, self.ended = [], None
        if self.path.is_file():
            content = read_json(self.path, f'remove it and {ROUNDS_FOLDER}, and start anew', kind=dict)
            rounds = content.get('rounds')
            if not isinstance(rounds, list) or not all(
                    isinstance(r, dict) and isinstance(r.get('iteration'), int) for r in rounds):
                raise InputError(f'{self.path}: rounds must be a list of rounds: remove it and start anew')
            for record in rounds:
                if record['iteration'] > iteration:
                    break
                if (record.get('decided_at') or 0) > iteration:
                    record.update(decided_at=None, decision=None, metric_after=None)
                self.rounds.append(record)
            if self.rounds and self.rounds[-1].get('decision') is not None:
                self.ended = content.get('ended')
        # Nobody writes before everybody has read.
        barrier()

    def write(self) -> None:
        """By the first process; whole or not at all."""
        if is_main_process():
            write_json(self.path, dict(rounds=self.rounds, ended=self.ended))
        barrier()

    def folder(self, number: int) -> Path:
        """Of the data roots of a round."""
        return self.work_dir / ROUNDS_FOLDER / f'round_{number}'

    def start_file(self, number: int) -> Path:
        """The trained tensors and the optimiser as a round begins (under DeepSpeed a folder)."""
        return self.work_dir / ROUNDS_FOLDER / f'start_{number}.pth'

    def wait_for(self, what: Mapping[str, Any] | None) -> None:
        """Note that people have to decide something before the run goes on, or that they have (None)."""
        path = self.work_dir / ROUNDS_FOLDER / WAITING_FILE
        if is_main_process():
            if what is None:
                path.unlink(missing_ok=True)
            else:
                write_json(path, dict(what))
        barrier()
