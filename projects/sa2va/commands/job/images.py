"""Lists of images with masks: where they come from, and whether two of them share a patient or a picture."""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterable, Sequence

from torch.utils.data import Dataset

from sa2va_dpo.common.console import progress, say, warn
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import read_json
from sa2va_dpo.datasets.annotations import resolve
from sa2va_dpo.datasets.field_of_view import find_field_of_view
from sa2va_dpo.datasets.ground_truth import match_ground_truth, patient_of
from sa2va_dpo.datasets.mask_io import list_images, read_image_rgb, read_mask
from sa2va_dpo.datasets.samples import digest_of_array

from .state import Labelled


class ListedMasks(Dataset):
    """A source for ``VesselSegDataset``: these images, in this order, with one prompt."""

    def __init__(self, items: Sequence[Labelled], prompt: str) -> None:
        self.items, self.prompt = list(items), prompt

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        item = self.items[index]
        field = find_field_of_view(Path(item.image), Path(item.mask))
        return dict(image=read_image_rgb(item.image), mask=read_mask(item.mask), prompt=self.prompt,
                    image_id=Path(item.image).stem, field_of_view=None if field is None else read_mask(field))


def pixel_hashes(paths: Iterable[str | Path]) -> dict[str, str]:
    """Path -> hash of the decoded picture: a copy under another name, or in another lossless format, has the same.

    Raises:
        InputError: a file that cannot be read as an image.
    """
    names = list(dict.fromkeys(map(str, paths)))
    with ThreadPoolExecutor(4) as pool:
        hashes = pool.map(lambda path: digest_of_array(read_image_rgb(path)), names)
        bar = progress(hashes, total=len(names), desc='comparing pictures', unit='image', disable=len(names) < 200)
        return dict(zip(names, bar))


def shared_with(test: Sequence[Labelled], others: Iterable[str | Path], group_regex: str | None) -> dict[str, str]:
    """Which test images are known to training or validation.

    Args:
        others: every image that training or validation looks at, wherever it lies.
        group_regex: see ``patient_of``.

    Returns:
        Path of the test image -> why: the same patient as, or the same picture as, one of ``others``.

    Raises:
        InputError: an image cannot be read, or ``group_regex`` does not match a stem.
    """
    others = list(dict.fromkeys(map(str, others)))
    patients = {patient_of(Path(path).stem, group_regex): path for path in reversed(others)}
    pictures = {value: path for path, value in reversed(pixel_hashes(others).items())}
    found = {}
    for path, value in pixel_hashes(item.image for item in test).items():
        same = patients.get(patient_of(Path(path).stem, group_regex))
        if same is not None:
            found[path] = f'same patient as {same}'
        elif value in pictures:
            found[path] = f'same picture as {pictures[value]}'
    return found


def keep_apart(
    items: Sequence[Labelled], others: Iterable[str | Path], group_regex: str | None, where: str, none_left: str
) -> list[Labelled]:
    """The images that share neither patient nor picture with ``others``; those that do are named and left out.

    Args:
        where: what they are kept out of, for the line that names them.
        none_left: the error's text.

    Raises:
        InputError: none is left.
    """
    shared = shared_with(items, others, group_regex)
    if shared:
        say(f'kept out of {where}: {len(shared)} of {len(items)} images: {name_some(shared)}')
    rest = [item for item in items if item.image not in shared]
    if not rest:
        raise InputError(none_left)
    return rest


def name_some(found: dict[str, str], most: int = 3) -> str:
    """The first of :func:`shared_with`'s findings, for one line."""
    some = [f'{path} ({why})' for path, why in list(found.items())[:most]]
    return ', '.join(some) + (f' and {len(found) - most} more' if len(found) > most else '')


def named_in(root: Path, name: str) -> list[str]:
    """The images of an annotation file that may be missing, or list nothing; training says what is wrong with one."""
    if not (root / name).is_file():
        return []
    entries = read_json(root / name, 'generate the pairs again', kind=list)
    return [str(resolve(root, entry['image'])) for entry in entries if isinstance(entry, dict) and entry.get('image')]


def matched(images: str, gt: str) -> list[Labelled]:
    """The images of a folder with their ground truth; those without are named and left out.

    Raises:
        InputError: none has any.
    """
    found, missing = match_ground_truth(list_images(Path(images)), Path(gt))
    for image in missing:
        warn(f'no ground truth for {image}: skipped')
    if not found:
        raise InputError(f'{images}: no image has ground truth of the same stem in {gt}: check the two folders')
    return [Labelled(str(image), str(mask)) for image, mask in found]
