"""The Chinese pages name the commands of the English ones and files that exist, and use the words of the glossary."""
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sa2va_dpo.common.bundled import PACKAGE

ROOT = Path(__file__).resolve().parents[2]
ENGLISH = {page: ROOT / 'docs' / page.name for page in sorted((ROOT / 'docs/zh-CN').glob('*.md'))
           if page.name != 'glossary.md'}
READMES = ROOT / 'README.md', ROOT / 'README.zh-CN.md'


def commands(page: Path) -> list[str]:
    """Commands of the bash blocks of a page, one a line, without comments and without line breaks."""
    blocks = re.findall(r'```bash\n(.*?)```', page.read_text(encoding='utf-8'), re.DOTALL)
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
    return [' '.join(line.split('#')[0].split()) for line in lines if line.split('#')[0].strip()]


def test_both_readmes_list_the_same_commands():
    english, chinese = map(commands, READMES)
    assert chinese == english
    assert 'bash train_dpo_vessel.sh' in english and 'bash tests/run.sh' in english


@pytest.mark.parametrize('page', ENGLISH, ids=lambda page: page.name)
def test_a_chinese_page_names_no_command_that_the_english_one_does_not(page):
    known = commands(ENGLISH[page])
    assert [line for line in commands(page) if line not in known] == []


@pytest.mark.parametrize('page', [*ENGLISH, *READMES, ROOT / 'docs/zh-CN/glossary.md'], ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', page.read_text(encoding='utf-8'))
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_review_page_uses_the_words_of_the_glossary():
    table = (ROOT / 'docs/zh-CN/glossary.md').read_text(encoding='utf-8')
    words = dict(re.findall(r'^\| ([^|]+?) \| ([^|]+?) \|', table, re.MULTILINE))
    text = json.loads((PACKAGE / 'assets/review/text.json').read_text(encoding='utf-8'))['zh']
    assert text['chosen'] == words['chosen'] and text['rejected'] == words['rejected']
    assert text['gt'] == words['ground truth'] and text['candidate'].startswith(words['candidate'])
    assert words['preference pair'] in text['pairs'] and words['mask'] in text['picks']
