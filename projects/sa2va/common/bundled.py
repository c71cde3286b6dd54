"""Files of this package, found in a checkout and in an installed copy alike."""
from __future__ import annotations

from pathlib import Path

from .errors import InputError

# Configs of earlier versions -> what they are called now.
RENAMED = dict(sa2va_dpo_vessel_tiny_own='sa2va_dpo_vessel_tiny_self')
PACKAGE = Path(__file__).resolve().parents[1]
# As the guide, the configs and the pages write it.
_IN_REPOSITORY = 'projects/sa2va/'


def bundled_checkpoint() -> str:
    """The tiny checkpoint that comes with the package (docs/tiny_checkpoint.md)."""
    return bundled('projects/sa2va/assets/tiny_sa2va')


def bundled(path: str | Path) -> str:
    """``path`` as it is where something is there; else, where it names a file or folder of this package as the
    repository does (``projects/sa2va/...``), the package's own; else ``path`` as it is."""
    text = str(path)
    if not Path(text).exists() and Path(text).as_posix().startswith(_IN_REPOSITORY):
        inside = PACKAGE / Path(text).as_posix()[len(_IN_REPOSITORY):]
        if inside.exists():
            return str(inside)
    return text


def config_path(name: str | Path) -> str:
    """The config file that a user means.

    Args:
        name: a path, or the bare name of a config of this package (``sa2va_dpo_vessel``, with or without ``.py``). A
            path that exists is taken as it is; the guide's path (``projects/sa2va/configs/...``) works from any folder.

    Returns:
        A path; ``name`` itself where nothing is found.

    Raises:
        InputError: a config of this package that has another name now.
    """
    found = Path(bundled(name))
    if found.stem in RENAMED and not found.is_file():
        raise InputError(f'{name}: this config is called {RENAMED[found.stem]}{found.suffix} now')
    if not found.is_file() and len(found.parts) == 1:
        inside = PACKAGE / 'configs' / (found.name if found.suffix == '.py' else f'{found.name}.py')
        if inside.is_file():
            return str(inside)
    return str(found)


def config_names() -> list[str]:
    """Names of the configs of this package, for :func:`config_path`."""
    return sorted(path.stem for path in (PACKAGE / 'configs').glob('*.py'))
