"""The two locks: what they share, what they may not hold, and how one is chosen."""
import os
import re
import subprocess

import pytest

# What the second stack has in another version.
MOVED = {'transformers', 'tokenizers', 'huggingface-hub', 'mmengine'}


def pins(path) -> dict[str, str]:
    return dict(re.findall(r'^([A-Za-z0-9._-]+)==([^\s;\\]+)', path.read_text(), re.MULTILINE))


def test_the_second_stack_moves_what_it_says_and_nothing_else(repo_root):
    first, second = (pins(repo_root / 'requirements' / name) for name in ('requirements.lock', 'next.lock'))
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} == MOVED
    assert first['transformers'].startswith('4.57.') and second['transformers'].startswith('5.')


@pytest.mark.parametrize('name', ['requirements.lock', 'next.lock'])
def test_every_package_is_hashed_and_no_address_is_written_down(repo_root, name):
    text = (repo_root / 'requirements' / name).read_text()
    entries = re.split(r'\n(?=[A-Za-z0-9])', text.strip())
    assert len(entries) == len(pins(repo_root / 'requirements' / name)) > 100
    assert all('--hash=sha256:' in entry for entry in entries)
    assert '://' not in text and 'index-url' not in text


def test_the_ranges_of_the_package_hold_both_stacks(repo_root):
    specifiers = pytest.importorskip('packaging.specifiers')
    declared = dict(re.findall(r'"([a-z]+)([<>=][^"]+)"', (repo_root / 'pyproject.toml').read_text()))
    for lock in ('requirements.lock', 'next.lock'):
        found = pins(repo_root / 'requirements' / lock)
        for name in ('transformers', 'mmengine', 'deepspeed', 'setuptools'):
            assert specifiers.SpecifierSet(declared[name]).contains(found[name], prereleases=True), (lock, name)


def test_an_unknown_stack_is_one_line_and_touches_nothing(repo_root, tmp_path):
    done = subprocess.run(['bash', str(repo_root / 'tools/setup_env.sh')], capture_output=True, text=True, cwd=tmp_path,
                          env=dict(os.environ, SA2VA_DPO_STACK='newest', SA2VA_DPO_VENV=str(tmp_path / 'venv')))
    assert done.returncode == 2 and done.stdout == ''
    assert len(done.stderr.splitlines()) == 1 and 'SA2VA_DPO_STACK' in done.stderr
    assert list(tmp_path.iterdir()) == []
