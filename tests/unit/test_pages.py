"""What the pages tell a reader to type exists: scripts, sub-commands, their flags, and the files that are named."""
from __future__ import annotations

import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from sa2va_dpo.commands.cli import COMMANDS
from sa2va_dpo.common.bundled import PACKAGE

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*(ROOT / name for name in ('README.md', 'README.zh-CN.md', 'CONTRIBUTING.md')),
         *sorted((ROOT / 'docs').rglob('*.md'))]
ENTRY = re.compile(r'(?:[A-Z_0-9]+=\S+ )*(?:torchrun \S+ (?:-m )?|\S*python[\d.]* (?:-m )?|bash )?'
                   r'(sa2va[-_]dpo [a-z][a-z-]*|train_dpo_vessel\.sh|'
                   r'(?:tools|scripts|benchmarks|tests)/\w+\.(?:py|sh))(.*)')
# Folders of the repository and of the package: a path that begins with one of them is there.
OURS = ('benchmarks', 'docs', 'projects', 'requirements', 'scripts', 'tests', 'tools', '_base_', 'commands', 'common',
        'configs', 'datasets', 'drawn', 'engine', 'evaluation', 'inference', 'models/checkpoint', 'models/losses',
        'models/mllm', 'parity', 'preferences', 'reporting', 'results')


def typed(page: Path) -> list[tuple[str, list[str]]]:
    """(script or sub-command, its flags) of all that a page says in code."""
    text = page.read_text(encoding='utf-8')
    blocks = re.findall(r'```bash\n(.*?)```', text, re.DOTALL)
    inline = re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', text, flags=re.DOTALL))
    lines = [line.split(' #')[0].strip() for block in [*blocks, *inline]
             for line in block.replace('\\\n', ' ').splitlines()]
    return [(match[1], re.findall(r'(?<![\w-])--[a-z][\w-]*', match[2])) for match in map(ENTRY.match, lines) if match]


@lru_cache(maxsize=None)
def flags_of(entry: str) -> frozenset[str]:
    """The flags that ``--help`` lists."""
    words = [entry]
    if not entry.endswith('.py'):
        words = ['-m', 'sa2va_dpo', 'job' if entry == 'train_dpo_vessel.sh' else entry.split()[1]]
    done = subprocess.run([sys.executable, *words, '--help'], cwd=ROOT, capture_output=True, text=True, check=True)
    return frozenset(re.findall(r'(?<![\w-])--[a-z][\w-]*', done.stdout)) | {'--help', '--debug'}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_flags_exist(page):
    for entry, flags in typed(page):
        if entry.startswith('sa2va'):
            assert entry.split()[1] in COMMANDS, entry
        else:
            assert (ROOT / entry).is_file(), entry
        if flags and not entry.startswith(('tests/', 'tools/setup_env')):
            assert set(flags) <= flags_of(entry), entry


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page):
    words = re.findall(r'(?<![\w./~-])[\w-]+(?:/[\w.*-]+)+/?', page.read_text(encoding='utf-8'))
    named = {word.rstrip('.') for word in words if word.startswith(tuple(f'{folder}/' for folder in OURS))}
    homes = (ROOT, PACKAGE, PACKAGE / 'configs', page.parent, ROOT / 'docs')
    assert [name for name in sorted(named) if not any(list(home.glob(name)) for home in homes)] == []


def test_the_commands_are_found():
    entries = {entry for page in PAGES for entry, _ in typed(page)}
    assert {'train_dpo_vessel.sh', 'sa2va-dpo predict', 'tools/train.py', 'benchmarks/scaling.py'} <= entries
