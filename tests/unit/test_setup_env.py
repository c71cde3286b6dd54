"""The set-up shows pip's progress bar where a terminal is, and plain lines in a pipe."""
import os
import pty
import stat
import subprocess

import pytest

# Stands for the environment's interpreter: the lock is incomplete once, and pip's arguments are kept.
PYTHON = '''#!/usr/bin/env bash
case "$*" in
    *check_env.py*requirements.lock) if [ ! -e "$HERE/installed" ]; then echo "missing: torch"; exit 1; fi ;;
    *"pip install"*--require-hashes*)
        echo "$*" > "$HERE/installed"
        if [ -t 1 ]; then echo terminal; else echo pipe; fi ;;
esac
exit 0
'''


@pytest.fixture()
def environment(tmp_path):
    for name, text in (('venv/bin/python', PYTHON), ('bin/uv', '#!/usr/bin/env bash\nexit 1\n')):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, 'VIRTUAL_ENV': str(tmp_path / 'venv'), 'HERE': str(tmp_path),
            'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}'}


@pytest.mark.parametrize('terminal, bar', [(True, 'on'), (False, 'off')])
def test_the_bar_is_for_terminals(environment, repo_root, tmp_path, terminal, bar):
    controller, end = pty.openpty()
    try:
        done = subprocess.run(['bash', str(repo_root / 'tools/setup_env.sh')], env=environment, text=True,
                              stdout=subprocess.PIPE, stderr=end if terminal else subprocess.PIPE)
        said = os.read(controller, 65536).decode() if terminal else done.stderr
    finally:
        os.close(controller)
        os.close(end)
    assert done.returncode == 0 and done.stdout == f'{tmp_path / "venv/bin/python"}\n', 'one line for who calls it'
    assert 'missing: torch' in said and 'a few minutes' in said
    assert ('terminal' if terminal else 'pipe') in said
    assert f'--progress-bar {bar}' in (tmp_path / 'installed').read_text()
