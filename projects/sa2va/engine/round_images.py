"""Which images a run with rounds mines: labelled, unlabelled, and those that judges are held against."""
from __future__ import annotations

from pathlib import Path
from typing import Iterable, Mapping, Sequence

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import hash_file, read_json
from sa2va_dpo.datasets.annotations import TEST_FILE, VAL_FILE, has_records, read_pairs, read_segs, resolve
from sa2va_dpo.datasets.ground_truth import check_stems, match_ground_truth
from sa2va_dpo.datasets.mask_io import list_images

MaskedImages = list[tuple[Path, Path]]  # image and mask
# Lists of a data root whose images judge the run: nothing of them may be trained on.
HELD_OUT = (VAL_FILE, TEST_FILE)


def labelled_images(source: str | Mapping[str, str] | None, data_root: str | Path) -> MaskedImages:
    """The labelled training images, in a fixed order.

    Args:
        source: ``rounds.labelled``.

    Raises:
        InputError: no such file or folder, or images without a mask.
    """
    if source is None:
        return []
    if not isinstance(source, str):
        unknown = sorted(set(source) ^ {'images', 'gt'})
        if unknown:
            raise InputError(f'rounds.labelled: {dict(source)} must have the two fields images and gt')
        matched, missing = match_ground_truth(list_images(Path(source['images'])), source['gt'])
        if not matched:
            raise InputError(f'rounds.labelled: {source["gt"]}: no mask fits any of the {len(missing)} images of '
                             f'{source["images"]}')
        return matched
    root, path = Path(data_root), Path(data_root) / source
    remedy = 'make it with scripts/generate_dpo_dataset.py, or set rounds.labelled (None: no labelled images)'
    entries = read_json(path, 'correct it or make it again', remedy, kind=list)
    if entries and isinstance(entries[0], dict) and 'chosen_mask' in entries[0]:
        found = {}
        for record in read_pairs(path, root):
            if record.gt_mask is None:
                raise InputError(f'{path}: {record.image} names no gt_mask, so its image is not labelled: set '
                                 'rounds.labelled=None '
                                 f'and rounds.unlabelled, or make the pairs with --gt_dir')
            found[record.image] = record.gt_mask
    else:
        found = {record.image: record.mask for record in read_segs(path, root)}
    pairs = [(resolve(root, image), resolve(root, mask)) for image, mask in found.items()]
    check_stems([image for image, _ in pairs])
    return pairs


def unlabelled_images(source: str | None) -> list[Path]:
    """The images without masks, in a fixed order.

    Args:
        source: ``rounds.unlabelled``: a folder, or a text file of paths, one a line, relative to the file's own folder.

    Raises:
        InputError: nothing there, a path that is no file, or two images of one stem.
    """
    if source is None:
        return []
    path = Path(source)
    if path.is_dir():
        images = list_images(path)
    else:
        try:
            lines = path.read_text(encoding='utf-8').splitlines()
        except (OSError, UnicodeDecodeError):
            raise InputError(f'rounds.unlabelled: {path}: no such folder, and no text file of paths: check the '
                             'path') from None
        images = [path.parent / line.strip() for line in lines if line.strip()]
        missing = [image for image in images if not image.is_file()]
        if missing:
            raise InputError(f'rounds.unlabelled: {path}: names {missing[0]}, which is no file')
    if not images:
        raise InputError(f'rounds.unlabelled: {path}: holds no image')
    check_stems(images)
    return images


def held_out_images(data_root: str | Path) -> dict[str, MaskedImages]:
    """Annotation file -> images and masks of those lists in ``HELD_OUT`` that there are."""
    root, found = Path(data_root), {}
    for name in HELD_OUT:
        path = root / name
        if has_records(path):
            found[name] = [(resolve(root, record.image), resolve(root, record.mask))
                           for record in read_segs(path, root)]
    return found


def without_known(unlabelled: Sequence[Path], labelled: Iterable[Path],
                  held_out: Mapping[str, MaskedImages]) -> tuple[list[Path], list[Path]]:
    """(the unlabelled images to mine, those that are labelled ones under whatever name and left out).

    Raises:
        InputError: one of them is a validation or test image, by its content: what judges a run is not trained on.
    """
    judging = {hash_file(image): (name, image) for name, pairs in held_out.items() for image, _ in pairs}
    known = {hash_file(image) for image in labelled}
    kept, left_out = [], []
    for image in unlabelled:
        content = hash_file(image)
        if content in judging:
            name, other = judging[content]
            raise InputError(f'rounds.unlabelled: {image}: is {other.name} of {name}, and what judges the run must '
                             'not be trained '
                             f'on: take it out')
        (left_out if content in known else kept).append(image)
    return kept, left_out
