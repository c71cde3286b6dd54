"""Which patients are held out for validation and for the test, and why there are none when there are none."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

from sa2va_dpo.common.files import hash_file

from .ground_truth import patient_of
from .mask_io import natural_key

VAL_FRACTION, TEST_FRACTION = 0.1, 0.2


@dataclass(frozen=True)
class Split:
    """Images of one run, each part in the order in which they were given.

    Attributes:
        train, val, test: no patient stands in two of them.
        patients: part -> number of patients.
        note: why nothing was held out although it was asked for; ``None`` where it was.
        joined: files of different patients with one content, joined to one patient ('a.png = b.png', ...).
    """

    train: list[Path]
    val: list[Path] = field(default_factory=list)
    test: list[Path] = field(default_factory=list)
    patients: Mapping[str, int] = field(default_factory=dict)
    note: str | None = None
    joined: list[str] = field(default_factory=list)

    def sizes(self) -> dict[str, dict[str, int]]:
        """Part -> its patients and images, JSON-ready."""
        return {part: dict(patients=self.patients[part], images=len(getattr(self, part)))
                for part in ('train', 'val', 'test')}


def split_patients(images: Sequence[Path], val_fraction: float, test_fraction: float, seed: int,
                   group_regex: str | None = None) -> Split:
    """Hold out whole patients at random, at least one for each part that is asked for and at least one for training.

    Two files of the same content belong to one patient whatever their names: a copy of a test image must not be trained
        on.

    Args:
        images: in an order that does not depend on the machine.
        val_fraction, test_fraction: shares of the patients, rounded; 0 holds none out. Together below 1.
        seed: of the shuffle. The test is drawn first, so it does not depend on ``val_fraction``.
        group_regex: see :func:`patient_of`.

    Returns:
        With too few patients everything is for training and ``note`` says why.

    Raises:
        InputError: an image cannot be read, or ``group_regex`` does not match.
    """
    images = list(images)
    if not val_fraction and not test_fraction:
        return Split(images, patients=dict(train=len(set(_patients(images, group_regex))), val=0, test=0))
    owner, joined = _joined(images, _patients(images, group_regex))
    patients = sorted(set(owner), key=lambda name: natural_key(Path(name)))
    needed = 1 + bool(val_fraction) + bool(test_fraction)
    if len(patients) < needed:
        parts = ' and '.join(
            name for name, fraction in (('validation', val_fraction), ('test', test_fraction)) if fraction
        )
        note = (
            f'{len(images)} images of {len(patients)} patient{"s" * (len(patients) != 1)} are too few to hold out '
            f'{parts} '
            f'(at least {needed} patients): all are for training; add images of other patients, or tell patients '
            'apart with --group_regex'
        )
        return Split(images, patients=dict(train=len(patients), val=0, test=0), note=note, joined=joined)
    count = {name: max(1, round(fraction * len(patients))) if fraction else 0
             for name, fraction in (('test', test_fraction), ('val', val_fraction))}
    while sum(count.values()) >= len(patients):
        count[max(count, key=count.get)] -= 1
    order = np.random.default_rng(seed).permutation(len(patients))
    part_of = dict.fromkeys(patients, 'train')
    part_of.update((patients[i], 'test') for i in order[:count['test']])
    part_of.update((patients[i], 'val') for i in order[count['test']:count['test'] + count['val']])
    parts = {
        name: [image for image, patient in zip(images, owner) if part_of[patient] == name]
        for name in ('train', 'val', 'test')
    }
    return Split(**parts, patients=dict(count, train=len(patients) - sum(count.values())), joined=joined)


def _patients(images: Sequence[Path], group_regex: str | None) -> list[str]:
    return [patient_of(image.stem, group_regex) for image in images]


def _joined(images: Sequence[Path], patients: list[str]) -> tuple[list[str], list[str]]:
    """The patient of every image after joining those that share a file's content, and what was joined."""
    parent = {name: name for name in patients}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    first: dict[str, int] = {}
    joined = []
    for i, image in enumerate(images):
        j = first.setdefault(hash_file(image), i)
        if root(patients[i]) != root(patients[j]):
            parent[root(patients[i])] = root(patients[j])
            joined.append(f'{images[j].name} = {image.name}')
    return [root(name) for name in patients], joined
