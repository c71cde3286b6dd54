"""Files, folders and patterns -> the images that they mean, each under a name that no other has."""
from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

from sa2va_dpo.common.errors import InputError

from . import containers
from .mask_io import IMAGE_SUFFIXES, natural_key
from .names import is_utf8, key, printable


@dataclass(frozen=True)
class ImageFile:
    """An image to be read.

    Attributes:
        path: the file, or a picture of a container (``datasets/containers.py``).
        name: its path below what was given, ``/`` between folders, without the suffix: what is made of it is called so.
        label: the same with the suffix, for tables.
        problem: why it cannot be read, where listing it has shown that already.
    """

    path: Path
    name: str
    label: str
    problem: str | None = None


def find_images(inputs: Sequence[str], without: Path | None = None) -> list[ImageFile]:
    """The images of files, folders (with their sub-folders) and patterns (``*``, ``?``, ``[]``, ``**``), in natural
    order within each.

    Names begin below the folder, or below the part of a pattern that has no wildcard; of a file its own name is taken.
    Of folders and patterns only files in the formats of :func:`sa2va_dpo.datasets.mask_io.list_images` are taken,
    hidden ones left out; a file that is named itself is taken as it is. Frames of DICOM and NIfTI files and pages of
    TIFF and GIF files are images of their own. A file that cannot even be listed is among the images, with its
    ``problem``.

    Args:
        without: a folder that is left out (the results of an earlier run).

    Raises:
        InputError: there is no such file or folder, there is no image, or two images would have one name.
    """
    found: dict[str, ImageFile] = {}
    left_out = None if without is None else without.resolve()
    for text in inputs:
        for path, root in _files(text, left_out):
            for image in _images(path, root):
                other = found.setdefault(image.name, image)
                if other.path != image.path and other.path.resolve() != image.path.resolve():
                    raise InputError(
                        f'{printable(image.path)}: its results would have the name of those of '
                        f'{printable(other.path)}: rename one of them, or give the folder that holds both (sub-folders '
                        'are kept)'
                    )
    if not found:
        raise InputError(
            f'{" ".join(map(printable, inputs))}: no image there: the formats are '
            f'{", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)}, DICOM and NIfTI'
        )
    return list(found.values())


def _files(text: str, left_out: Path | None) -> Iterator[tuple[Path, Path]]:
    """(file, folder below which its name begins)."""
    path = Path(text)
    if path.is_dir():
        yield from ((file, path) for file in _walk(path, left_out))
    elif path.exists() or containers.container_of(path) is not None:
        yield path, path.parent
    elif glob.has_magic(text):
        root = _fixed_part(path)
        matches = sorted(map(Path, glob.glob(text, recursive=True)), key=_order)
        if not matches:
            raise InputError(f'{printable(text)}: nothing fits this pattern: check it, and the folder it begins in')
        for match in matches:
            if match.is_dir():
                if '**' not in path.parts:  # they are matched one by one already
                    yield from ((file, root) for file in _walk(match, left_out))
            elif _taken(match) and not (left_out and match.resolve().is_relative_to(left_out)):
                yield match, root
    else:
        raise InputError(f'{printable(text)}: no such file or folder: check the path')


def _walk(folder: Path, left_out: Path | None) -> Iterator[Path]:
    """Image files of a folder, then those of its sub-folders; links are followed, but never in a circle."""
    seen: set[Path] = set()

    def below(folder: Path) -> Iterator[Path]:
        real = folder.resolve()
        if real in seen or real == left_out:
            return
        seen.add(real)
        inside = sorted(folder.iterdir(), key=natural_key)
        yield from (path for path in inside if path.is_file() and _taken(path))
        for path in inside:
            if path.is_dir() and not path.name.startswith('.'):
                yield from below(path)

    yield from below(folder)


def _taken(path: Path) -> bool:
    return not path.name.startswith('.') and (
        path.suffix.lower() in IMAGE_SUFFIXES or path.is_file() and containers.is_volume(path)
    )


def _images(path: Path, root: Path) -> Iterator[ImageFile]:
    """A file as the image or images that are in it."""
    relative = path.relative_to(root).as_posix()
    stem = key(os.path.splitext(relative)[0])
    if not is_utf8(relative):
        problem = f'{printable(path)}: the name is not UTF-8: rename it (convmv -f latin1 -t utf8)'
        yield ImageFile(path, printable(stem), printable(relative), problem)
    elif containers.container_of(path) is not None or not containers.is_volume(path):
        yield ImageFile(path, stem, relative)
    else:
        try:
            frames = containers.entries(path)
        except InputError as error:
            yield ImageFile(path, stem, relative, str(error))
            return
        folder = Path(relative).parent
        for frame in frames:
            yield ImageFile(frame, key((folder / frame.stem).as_posix()), (folder / path.name / frame.name).as_posix())


def _fixed_part(pattern: Path) -> Path:
    """The folders of a pattern before its first wildcard."""
    parts = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)


def _order(path: Path) -> list:
    return [natural_key(Path(part)) for part in path.parts]
