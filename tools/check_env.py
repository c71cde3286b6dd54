"""Compare the running interpreter's packages with a lock file (standard library only, so it runs before any install).

    python tools/check_env.py requirements/requirements.lock     lists what is missing, exit 1 if anything is
    python tools/check_env.py --editable ROOT                    exit 1 unless this checkout is the installed one
    python tools/check_env.py --installed FILE                   exit 1 unless what this pyproject.toml describes is
    installed
"""
import json
import re
import sys
from importlib import metadata
from pathlib import Path


def missing_packages(lock: Path) -> list:
    """Names pinned in ``lock`` that are absent or of another version, each as ``name (have -> want)``."""
    missing = []
    for name, wanted in re.findall(r'^([A-Za-z0-9._-]+)==([^\s;\\]+)', lock.read_text(encoding='utf-8'), re.MULTILINE):
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = None
        # A CUDA or CPU build reports a local version (2.15.0+cu132) that the lock does not pin.
        if found is None or found.split('+')[0] != wanted:
            missing.append(f'{name} ({found or "absent"} -> {wanted})')
    return missing


def is_editable_install_of(root: Path) -> bool:
    """Whether the installed ``sa2va-dpo`` distribution points at this checkout and has its version (and so its
    commands)."""
    try:
        installed = metadata.distribution('sa2va-dpo')
    except metadata.PackageNotFoundError:
        return False
    record = installed.read_text('direct_url.json')
    version = re.search(
        r"^__version__ = '(.+)'$", (root / 'projects/sa2va/__init__.py').read_text(encoding='utf-8'), re.MULTILINE
    )
    return bool(record) and json.loads(record).get('url') == root.resolve().as_uri() and installed.version == version[1]


def is_installed(project: Path) -> bool:
    """Whether the distribution that a ``pyproject.toml`` describes is installed in its version (tomllib came with
    3.11)."""
    text = project.read_text(encoding='utf-8')
    name, version = (re.search(rf'^{field} = "(.+?)"', text, re.MULTILINE)[1] for field in ('name', 'version'))
    try:
        return metadata.version(name) == version
    except metadata.PackageNotFoundError:
        return False


if __name__ == '__main__':
    if sys.argv[1] == '--installed':
        sys.exit(not is_installed(Path(sys.argv[2])))
    if sys.argv[1] == '--editable':
        sys.exit(not is_editable_install_of(Path(sys.argv[2])))
    absent = missing_packages(Path(sys.argv[1]))
    if absent:
        print('missing: ' + ', '.join(absent))
    sys.exit(bool(absent))
