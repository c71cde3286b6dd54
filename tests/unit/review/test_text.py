"""The page's words: one table, two languages, nothing missing."""
import json
import re
from pathlib import Path

import pytest

ASSETS = Path(__file__).resolve().parents[3] / 'projects/sa2va/assets/review'
TABLE = json.loads((ASSETS / 'text.json').read_text(encoding='utf-8'))


def places(text):
    return sorted(re.findall(r'\{(\w+)\}', text))


def test_both_languages_say_the_same_things():
    english, chinese = TABLE['en'], TABLE['zh']
    assert list(TABLE) == ['en', 'zh'] and set(english) == set(chinese)
    for name, text in english.items():
        if isinstance(text, str):
            assert places(text) == places(chinese[name]), name
    for group, rows in english['help'].items():
        assert [len(row) for row in rows] == [len(row) for row in chinese['help'][group]] and set(
            english['help']
        ) == set(chinese['help'])


def test_the_chinese_is_chinese():
    alike = {name for name, text in TABLE['zh'].items() if isinstance(text, str) and text == TABLE['en'][name]}
    assert alike <= {'iou', 'saving'}


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
