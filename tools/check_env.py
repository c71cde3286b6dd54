"""Compare the running interpreter's packages with a lock file (standard library only, so it runs before any install).

    python tools/check_env.py requirements/requirements.lock     lists what is missing, exit 1 if anything is
    python tools/check_env.py --editable ROOT                    exit 1 unless this checkout is the installed one
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
    """Whether the installed ``sa2va-dpo`` distribution points at this checkout."""
    try:
        record = metadata.distribution('sa2va-dpo').read_text('direct_url.json')
    except metadata.PackageNotFoundError:
        return False
    return bool(record) and json.loads(record).get('url') == root.resolve().as_uri()


if __name__ == '__main__':
    if sys.argv[1] == '--editable':
        sys.exit(not is_editable_install_of(Path(sys.argv[2])))
    absent = missing_packages(Path(sys.argv[1]))
    if absent:
        print('missing: ' + ', '.join(absent))
    sys.exit(bool(absent))
