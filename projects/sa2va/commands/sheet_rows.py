"""What ``sa2va-dpo sheet`` shows of a job, of pairs, or of folders of masks."""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

import cv2
import numpy as np

from sa2va_dpo.common.console import progress
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import write_bytes
from sa2va_dpo.datasets.annotations import PAIRS_FILE, read_pairs, resolve
from sa2va_dpo.datasets.field_of_view import find_field_of_view
from sa2va_dpo.datasets.ground_truth import MaskFolder, match_ground_truth, size_problem
from sa2va_dpo.datasets.mask_io import image_size, list_images, read_image_rgb, read_mask
from sa2va_dpo.datasets.names import printable
from sa2va_dpo.evaluation.report import PREDICTIONS
from sa2va_dpo.evaluation.sheet import Case, case_sheet, pair_sheet, spread

from .job.state import STATE_FILE, JobState


def write_folder(output: str, folder: str, rows: int, names: Sequence[str] | None) -> list[str]:
    """The sheet of a finished job or of a data root; returns the names of the images on it.

    Raises:
        InputError: the folder is neither, or lacks what the sheet shows.
    """
    root = Path(folder)
    if (root / PAIRS_FILE).is_file():
        return _write_pairs(output, root, rows, names)
    if not (root / STATE_FILE).is_file():
        raise InputError(f'{root}: holds neither a job ({STATE_FILE}) nor pairs ({PAIRS_FILE}): give the --work-dir of '
                         'one, or --images, --gt and --after')
    tested = [(Path(item.image), Path(item.mask)) for item in JobState.load(root).test]
    before, after = (root / name / PREDICTIONS for name in ('test_before', 'test_after'))
    for place in (before, after):
        if not place.is_dir():
            raise InputError(f'{place}: no such folder: the job has not finished, or an earlier version made it that '
                             'kept no masks')
    return _write(output, tested, before, after, rows, names)


def write_cases(output: str, images: str, gt: str, before: str | None, after: str, rows: int,
                names: Sequence[str] | None) -> list[str]:
    """The sheet of folders of masks; returns the names of the images on it.

    Raises:
        InputError: a folder is missing, or nothing in it fits.
    """
    matched, _ = match_ground_truth(list_images(images), gt)
    if not matched:
        raise InputError(f'{gt}: holds no mask of an image in {images}: check the two folders')
    return _write(output, matched, None if before is None else Path(before), Path(after), rows, names)


def _write(output: str, tested: Sequence[tuple[Path, Path]], before: Path | None, after: Path, rows: int,
           names: Sequence[str] | None) -> list[str]:
    if not tested:
        raise InputError('sheet: this job had no test images: there is nothing to show')
    stems = [image.stem for image, _ in tested]
    places = (None if before is None else _Masks(before)), _Masks(after)
    if names is not None:
        chosen = [stems.index(name) for name in _known(names, stems)]
        cases = [_case(*tested[i], *places) for i in chosen]
    else:
        # Nothing is kept but one number an image: a test may be large.
        gains = []
        for image, truth in progress(tested, desc='comparing', unit='image', disable=len(tested) < 20):
            case = _case(image, truth, *places)
            gains.append(case.dice(case.after) - (0 if case.before is None else case.dice(case.before)))
        cases = [_case(*tested[i], *places) for i in spread(gains, rows)]
    _save(output, case_sheet(cases))
    return [case.name for case in cases]


class _Masks:
    """Predicted masks of a folder, which is listed once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.masks = folder, MaskFolder(folder)

    def read(self, image: Path, truth: Path) -> np.ndarray:
        found = self.masks.find(image.stem)
        if found is None:
            raise InputError(f'{self.folder}: holds no mask of {printable(image.name)}')
        sizes = image_size(truth), image_size(found)
        if sizes[0] != sizes[1]:
            raise InputError(size_problem(image, found, *sizes))
        return read_mask(found)


def _case(image: Path, truth: Path, before: _Masks | None, after: _Masks) -> Case:
    field = find_field_of_view(image, truth)
    return Case(printable(image.stem), read_image_rgb(image), read_mask(truth), after.read(image, truth),
                None if before is None else before.read(image, truth), None if field is None else read_mask(field))


def _write_pairs(output: str, root: Path, rows: int, names: Sequence[str] | None) -> list[str]:
    records = read_pairs(root / PAIRS_FILE, root)
    stems = [Path(record.image).stem for record in records]
    if names is None:
        chosen = spread([record.iou_gap for record in records], rows)
    else:
        chosen = [i for name in _known(names, stems) for i, stem in enumerate(stems) if stem == name]
    drawn = []
    for record in (records[i] for i in chosen):
        masks = [read_mask(resolve(root, name)) for name in (record.chosen_mask, record.rejected_mask)]
        below = (f'{record.chosen_source or "chosen"}, IoU {record.chosen_iou:.2f}',
                 f'{record.rejected_source or "rejected"}, IoU {record.rejected_iou:.2f}')
        drawn.append((Path(record.image).stem, read_image_rgb(resolve(root, record.image)), masks[0], masks[1], *below))
    _save(output, pair_sheet(drawn))
    return [printable(name) for name, *_ in drawn]


def _save(output: str, sheet: np.ndarray) -> None:
    content = cv2.imencode(Path(output).suffix.lower(), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    write_bytes(output, content.tobytes())


def _known(names: Sequence[str], stems: Sequence[str]) -> Sequence[str]:
    for name in names:
        if name not in stems:
            raise InputError(f'--names {name}: no such image here; the first are {", ".join(sorted(stems)[:3])}')
    return names
