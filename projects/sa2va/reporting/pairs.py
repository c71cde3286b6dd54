"""The preference pairs of a run: how far apart, from which sources, what the judge's word is worth, and some to look
at."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import read_json
from sa2va_dpo.datasets.annotations import PAIRS_FILE, PairRecord, read_pairs, resolve
from sa2va_dpo.datasets.mask_io import read_image_rgb, read_mask
from sa2va_dpo.preferences.report import source_kind

from .figures import gap_histogram, sources
from .pictures import Picture, pair_picture
from .text import Text

REPORT_FILE = 'generation_report.json'
SHOWN = 4


@dataclass(frozen=True)
class ShownPair:
    key: str
    name: str
    gap: float
    chosen_source: str | None
    rejected_source: str | None
    picture: Picture | None
    problem: str = ''


@dataclass(frozen=True)
class Pairs:
    """What the report says about pairs.

    Attributes:
        agreement: judge -> ``tau``, ``low``, ``high``, ``images`` (Kendall's tau with the ground truth's ranking).
        warnings: the generator's.
    """

    count: int
    images: int
    figures: list[Markup]
    agreement: dict[str, Mapping[str, Any]]
    warnings: list[str]
    shown: list[ShownPair]


def read(root: Path, min_gap: float | None, text: Text, name: str = 'pair') -> Pairs | None:
    """Of a data root; None where it has no pair.

    Args:
        min_gap: smallest gap that makes a pair.
        name: begins the keys of the pairs that are shown.

    Raises:
        InputError: a file of it is damaged.
    """
    if not (root / PAIRS_FILE).is_file():
        return None
    records = read_pairs(root / PAIRS_FILE, root)
    if not records:
        return None
    path = root / REPORT_FILE
    report = read_json(path, 'generate the pairs again', kind=dict) if path.is_file() else {}
    wins = Counter(source_kind(record.chosen_source) for record in records if record.chosen_source)
    losses = Counter(source_kind(record.rejected_source) for record in records if record.rejected_source)
    by_source = {name: (wins[name], losses[name]) for name in sorted(wins | losses)}
    return Pairs(
        count=len(records),
        images=len({record.image for record in records}),
        figures=[gap_histogram([record.preference_gap for record in records], min_gap, text),
                 *([sources(by_source, text)] if by_source else [])],
        agreement=report.get('judge_agreement') or {},
        warnings=report.get('warnings') or [],
        shown=[_shown(root, records[index], f'{name}-{number}') for number, index in enumerate(spread(records))],
    )


def spread(records: Sequence[PairRecord], most: int = SHOWN) -> list[int]:
    """Indices of pairs from the smallest gap to the largest, evenly by rank, of different images where there are."""
    order = np.argsort([record.preference_gap for record in records], kind='stable')
    wanted = np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int)
    taken: list[int] = []
    for place in wanted:
        near = sorted(range(len(order)), key=lambda other: abs(other - int(place)))
        images = {records[index].image for index in taken}
        fresh = [int(order[other]) for other in near if records[order[other]].image not in images]
        taken.append(fresh[0] if fresh else int(order[place]))
    return list(dict.fromkeys(taken))


def _shown(root: Path, record: PairRecord, key: str) -> ShownPair:
    picture, problem = None, ''
    try:
        picture = pair_picture(read_image_rgb(resolve(root, record.image)),
                               read_mask(resolve(root, record.chosen_mask)),
                               read_mask(resolve(root, record.rejected_mask)))
    except (InputError, ValueError) as error:
        problem = str(error)
    return ShownPair(key, Path(record.image).stem, record.preference_gap, record.chosen_source,
                     record.rejected_source, picture, problem)
