"""How public data sets name their files: which mask, and which field of view, belongs to which image.

| data set | image | mask | second observer | field of view |
|---|---|---|---|---|
| DRIVE | 21_training.tif | 21_manual1.gif | 21_manual2.gif | 21_training_mask.gif |
| STARE | im0001.ppm | im0001.ah.ppm | im0001.vk.ppm | |
| CHASE_DB1 | Image_01L.jpg | Image_01L_1stHO.png | Image_01L_2ndHO.png | |
| HRF | 01_dr.JPG | 01_dr.tif | | 01_dr_mask.tif |
| DCA1 | 1.pgm | 1_gt.pgm | | |
| FIVES | 1_A.png | 1_A.png | | |
"""
from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import PurePath
from typing import Sequence

# After the stem of the image or, for what stands in IMAGE_MARKS, after the rest of it.
GT_SUFFIXES = ('_mask', '_gt', '_manual1', '_1stHO', '.ah', '_label', '_manual', '_seg')
SECOND_SUFFIXES = ('_manual2', '_2ndHO', '.vk')
FOV_SUFFIXES = ('_mask', '_fov', '_fov_mask')
IMAGE_MARKS = ('_training', '_test', '_image')
# Folders beside the images' or the masks' that hold fields of view, where they are neither of the two.
FOV_FOLDERS = ('mask', 'masks', 'fov', 'fov_mask', 'fov_masks', 'field_of_view')


def key(stem: str) -> str:
    """What two spellings of one name share: macOS writes 'ä' as 'a' and a combining mark, others as one letter."""
    return unicodedata.normalize('NFC', stem)


def image_ids(paths: Sequence[str]) -> list[str]:
    """A name of its own for each image of a list: its stem, where images share one its path as it is listed."""
    stems = [PurePath(path).stem for path in paths]
    count = Counter(stems)
    return [stem if count[stem] == 1 else str(path) for path, stem in zip(paths, stems)]


def bases(stem: str) -> list[str]:
    """The stem, then what a mask's suffix may follow in its place (``21_training`` -> ``21``)."""
    return [stem, *(stem[:-len(mark)] for mark in IMAGE_MARKS if stem.lower().endswith(mark) and len(stem) > len(mark))]


def readings(stem: str) -> list[tuple[str, str]]:
    """(base, suffix) of every way to read a mask's stem; the suffix of the whole stem is ''."""
    found = [(stem, '')]
    for suffix in (*GT_SUFFIXES, *SECOND_SUFFIXES):
        if stem.lower().endswith(suffix.lower()) and len(stem) > len(suffix):
            found.append((stem[:-len(suffix)], suffix))
    return found


def is_utf8(name: str) -> bool:
    """Whether a file name is text; names of another encoding come from the system with half surrogates."""
    try:
        name.encode('utf-8')
    except UnicodeEncodeError:
        return False
    return True


def printable(name: object) -> str:
    """A name for messages and reports, bytes that are no UTF-8 as ``\\xNN``."""
    return str(name).encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')
