"""Did a round help? Labelled validation decides; what lowers it is taken back."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

from sa2va_dpo.common.errors import InputError

KEPT, TAKEN_BACK = 'kept', 'taken back'


@dataclass(frozen=True)
class Guard:
    """Attributes:
        metric: of the validation; larger is better.
        patience: rounds taken back in a row that end the run.
        tolerance: a fall up to this is none.
    """

    metric: str = 'dice'
    patience: int = 2
    tolerance: float = 0.0

    def value(self, metrics: Mapping[str, float]) -> float:
        """Raises InputError where the validation has no such metric."""
        if self.metric not in metrics:
            raise InputError(f'rounds.guard.metric: {self.metric!r}: validation has no such metric; it has '
                             f'{", ".join(metrics)}')
        return float(metrics[self.metric])

    def decide(self, before: float, after: float) -> str:
        """``KEPT`` or ``TAKEN_BACK``; a value that is no number helps nobody."""
        return KEPT if after >= before - self.tolerance else TAKEN_BACK

    def exhausted(self, decisions: Sequence[str | None]) -> bool:
        """Whether the last ``patience`` rounds were all taken back."""
        return len(decisions) >= self.patience and all(d == TAKEN_BACK for d in decisions[-self.patience:])
