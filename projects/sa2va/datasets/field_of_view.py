"""The round field that a fundus camera sees, where a data set gives it: pixels outside are not scored."""
from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from . import containers
from .ground_truth import is_field_of_view
from .mask_io import IMAGE_SUFFIXES
from .names import FOV_FOLDERS, FOV_SUFFIXES, key


def find_field_of_view(image: Path, mask: Path) -> Path | None:
    """The field of view of an image, or ``None``.

    It is looked for beside the image, beside the mask, and in folders beside theirs that are called ``mask`` or ``fov``
    (``datasets/names.py``), by the image's stem and ``_mask`` or ``_fov``; in a ``fov`` folder also by the stem alone.
    What is found by name must look like one: large, and with nearly all vessels of the mask in it.

    Args:
        image, mask: files, or pictures of containers.
    """
    homes = [(containers.container_of(path) or path).parent for path in (image, mask)]
    own = {home.resolve() for home in homes}
    beside = [folder for home in dict.fromkeys(home.parent for home in homes) for folder in _folders(home)
              if folder.resolve() not in own]
    for folder in (*dict.fromkeys(homes), *beside):
        names = [key(image.stem) + suffix for suffix in FOV_SUFFIXES]
        if 'fov' in folder.name.lower() or 'field' in folder.name.lower():
            names.append(key(image.stem))
        for name in names:
            for path in _files(folder).get(name, ()):
                if path not in (image, mask) and is_field_of_view(path, mask):
                    return path
    return None


def _folders(parent: Path) -> list[Path]:
    return [Path(path) for path in _listed_folders(str(parent), parent.stat().st_mtime_ns)]


@lru_cache(maxsize=64)
def _listed_folders(parent: str, _changed: int) -> list[str]:
    return sorted(str(path) for path in Path(parent).iterdir() if path.name.lower() in FOV_FOLDERS and path.is_dir())


def _files(folder: Path) -> dict[str, list[Path]]:
    return _listed_files(str(folder), folder.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _listed_files(folder: str, _changed: int) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            found.setdefault(key(path.stem), []).append(path)
    return found
