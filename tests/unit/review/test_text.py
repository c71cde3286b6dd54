"""The page's words: one table, two languages, nothing missing."""
import json
import re
from pathlib import Path

import pytest

from tests.unit.texts import assert_languages_agree

ASSETS = Path(__file__).resolve().parents[3] / 'projects/sa2va/assets/review'
TABLE = json.loads((ASSETS / 'text.json').read_text(encoding='utf-8'))


def test_both_languages_say_the_same_things():
    assert_languages_agree(TABLE, alike=('iou', 'saving'))
    english, chinese = TABLE['en']['help'], TABLE['zh']['help']
    assert set(english) == set(chinese)
    for group, rows in english.items():
        assert [len(row) for row in rows] == [len(row) for row in chinese[group]], group


def test_both_languages_of_the_demo_page_say_the_same_things():
    assert_languages_agree(json.loads((ASSETS.parent / 'demo/text.json').read_text(encoding='utf-8')))


@pytest.mark.parametrize('path', sorted(ASSETS.glob('*.js')), ids=lambda path: path.name)
def test_every_word_that_the_page_says_is_there(path):
    content = path.read_text(encoding='utf-8')
    said = set(re.findall(r"say\('(\w+)'", content)) | set(
        re.findall(r"\b(?:tool|grid|style|end|do)_\w+(?=')", content)
    )
    assert said <= set(TABLE['en']), said - set(TABLE['en'])


def test_the_page_asks_nothing_of_others_and_holds_no_inline_code():
    for path in ASSETS.iterdir():
        content = path.read_text(encoding='utf-8').replace('http://www.w3.org/2000/svg', '')
        assert not re.search(r'https?://|innerHTML|eval\(|document\.write', content), path.name
    page = (ASSETS / 'page.html').read_text(encoding='utf-8')
    assert not re.search(r'<script(?![^>]*src=)|<style|\son\w+=|\sstyle=', page)
