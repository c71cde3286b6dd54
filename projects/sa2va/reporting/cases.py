"""Which images a report shows, and their pictures."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.mask_io import read_mask
from sa2va_dpo.evaluation.vessel_metric import prediction_file

from .comparison import METRIC, Rows
from .pictures import Picture, case_picture

# Pictures of each group: at most four groups, whatever the size of the test.
EACH = 3
# Index of an image -> ``image`` (uint8 [H, W, 3]), ``mask`` ([H, W], nonzero is vessel) and, where only a part of the
# pixels is scored, ``field_of_view`` (bool [H, W]).
Source = Callable[[int], Mapping[str, Any]]


@dataclass(frozen=True)
class Case:
    """One image of the test that the report shows.

    Attributes:
        key: its id on the page.
        picture: None where it cannot be drawn; ``problem`` says why.
    """

    key: str
    name: str
    after: Mapping[str, float]
    before: Mapping[str, float] | None
    picture: Picture | None
    problem: str = ''

    @property
    def change(self) -> float | None:
        return None if self.before is None else self.after[METRIC] - self.before[METRIC]


def choose(after: Rows, before: Rows | None, each: int = EACH) -> dict[str, list[int]]:
    """The images to be shown: group -> indices, no image twice.

    With a before: those that lost most, lie in the middle, gained most, and of the rest those with the lowest score;
    without: lowest, middle, highest score.
    """
    scores = np.array([row[METRIC] for row in after])
    if before is None:
        by_value, names = scores, ('lowest', 'middle', 'highest')
    else:
        by_value, names = scores - np.array([row[METRIC] for row in before]), ('worst', 'median', 'best')
    order = np.argsort(by_value, kind='stable').tolist()
    middle = sorted(order, key=lambda i: abs(by_value[i] - np.median(by_value)))
    wishes = {names[0]: order, names[2]: order[::-1], names[1]: middle}
    if before is not None:
        wishes['lowest'] = np.argsort(scores, kind='stable').tolist()
    taken: set[int] = set()
    groups = {}
    for name, wish in wishes.items():
        groups[name] = [i for i in wish if i not in taken][:each]
        taken.update(groups[name])
    order_of_page = (*names, *(('lowest',) if before is not None else ()))
    return {name: groups[name] for name in order_of_page if groups[name]}


def cases(after_dir: Path, after: Rows, before_dir: Path | None, before: Rows | None,
          source: Source | None) -> tuple[dict[str, list[Case]], dict[int, str]]:
    """The chosen images with their pictures: group -> cases, and index -> key of those that have a picture.

    Args:
        after_dir, before_dir: where the tests wrote their masks.
        source: gives image and ground truth again; None shows no picture.
    """
    names = Counter(row['image_id'] for row in after)
    groups, shown = {}, {}
    for group, indices in choose(after, before).items():
        groups[group] = []
        for index in indices:
            name = after[index]['image_id']
            picture, problem = None, ''
            if source is not None and names[name] == 1:
                try:
                    picture = _picture(source(index), name, after_dir, before_dir)
                except (InputError, ValueError) as error:
                    problem = str(error)
            elif source is not None:
                problem = f'{names[name]} images are called {name}: whose mask was kept is not known'
            case = Case(f'case-{index}', name, after[index], None if before is None else before[index], picture,
                        problem)
            groups[group].append(case)
            if picture is not None:
                shown[index] = case.key
    return groups, shown


def _picture(item: Mapping[str, Any], name: str, after_dir: Path, before_dir: Path | None) -> Picture:
    """Raises InputError or ValueError where a mask is missing or does not fit."""
    field = item.get('field_of_view')
    return case_picture(
        item['image'],
        np.asarray(item['mask']) > 0,
        read_mask(prediction_file(after_dir, name)),
        None if before_dir is None else read_mask(prediction_file(before_dir, name)),
        None if field is None else np.asarray(field) > 0,
    )


def values(rows: Sequence[Mapping[str, Any]], metric: str = METRIC) -> list[float]:
    """One column of a table of scores."""
    return [row[metric] for row in rows]
