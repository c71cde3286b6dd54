"""Words in two languages, a strict policy, figures without inline style."""
import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from sa2va_dpo.reporting import figures, pictures
from sa2va_dpo.reporting.cases import choose
from sa2va_dpo.reporting.comparison import Verdict
from sa2va_dpo.reporting.page import Report, render
from sa2va_dpo.reporting.text import ASSETS, Text
from tests.unit.texts import assert_languages_agree

TABLE = json.loads((ASSETS / 'text.json').read_text(encoding='utf-8'))


def test_both_languages_say_the_same_things():
    assert_languages_agree(TABLE, alike=('metric_dice', 'metric_iou', 'metric_cldice', 'line_dice', 'line_cldice',
                                         'line_dpo_loss', 'case_score'))


def test_no_word_is_missing_or_idle():
    code = ''.join(path.read_text(encoding='utf-8') for path in
                   [*(ASSETS.parents[1] / 'reporting').glob('*.py'), ASSETS / 'report.html',
                    ASSETS.parents[1] / 'commands/job/page.py'])
    put_together = '(verdict|section|title|group|metric|column|set|decision|fact)_'
    made = {key for key in TABLE['en'] if re.match(put_together, key)}
    said = set(re.findall(r"'(\w+)'", code)) | set(re.findall(r'"(\w+)"', code))
    assert set(TABLE['en']) - made <= said, sorted(set(TABLE['en']) - made - said)
    direct = set(re.findall(r"\b(?:t|text)\('(\w+)'", code))
    assert direct - set(TABLE['en']) <= {'title_', 'verdict_', 'section_', 'group_', 'metric_', 'column_'}


def test_the_policy_allows_what_is_in_the_file_and_nothing_else():
    page = render(Report('job', 'x', Verdict('unseen', 'bad')), Text())
    policy = re.search('Content-Security-Policy" content="(.*?)"', page)[1].replace('&#39;', "'")
    assert policy.startswith("default-src 'none'; img-src data:;") and 'unsafe' not in policy
    for tag in ('style', 'script'):
        content = re.search(f'<{tag}>(.*?)</{tag}>', page, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r'\sstyle=|\son\w+=|https?://|javascript:', page)


def test_assets_hold_no_address_and_no_inline_code():
    for name in ('report.html', 'report.css', 'report.js'):
        assert not re.search(r'https?://|innerHTML|eval\(|\sstyle=|\son\w+=',
                             (ASSETS / name).read_text(encoding='utf-8')), name


@pytest.mark.parametrize('language', ['en', 'zh'])
def test_figures_are_coloured_by_class_and_escape_names(language):
    text = Text(language)
    lines = [figures.Series('loss', [0, 1], [1.0, 0.5]), figures.Series('$x', [0, 1], [1.0, 0.5], '#e69f00')]
    found = [
        figures.scatter([.1, .2], [.2, .1], ['<b>', '"&'], {1: 'case-1'}, 'Dice', text),
        figures.scatter([.5] * 400, [.5] * 400, ['x'] * 400, {}, 'Dice', text),
        figures.ranked([.1], ['<b>'], {0: 'case-0'}, 'Dice', text),
        figures.curve('loss', lines[:1], 'loss', figures.Marks(alarms=[1], rounds=[0, 1], taken=1), text),
        figures.gap_histogram([.1], .05, text),
        figures.sources({'<i>$': (1, 2), **{f's{i}': (i, 1) for i in range(40)}}, text)]
    for figure in found:
        assert figure.startswith('<svg') and not re.search(r'style=|<b>|<i>|#0072b2|#e69f00|#010101|http', figure)
        ids = set(re.findall(r'\sid="(\w+)"', figure))
        assert {a or b for a, b in re.findall(r'href="#(\w+)"|url\(#(\w+)\)', figure)} <= ids
    assert found[0].count('<title>') == 2 and found[1].count('<title>') == 400
    assert found[0].count('data-open="case-1"') == 1 and '&lt;b&gt;: 0.1000 → 0.2000' in found[0]


def test_figures_are_the_same_every_time():
    drawn = [figures.gap_histogram([.1, .2, .4], .05, Text()) for _ in range(2)]
    assert drawn[0] == drawn[1]


def layer(panel):
    image = Image.open(io.BytesIO(base64.b64decode(panel.layer.partition(',')[2])))
    return np.array(image.convert('RGBA'))


def test_layers_tell_right_from_wrong():
    truth, before, after = (np.zeros((6, 8), bool) for _ in range(3))
    truth[0, :4] = True
    before[0, 2:6] = True
    after[0, 1:5] = True
    picture = pictures.case_picture(np.zeros((6, 8, 3), np.uint8), truth, after, before)
    views = ['image', 'before', 'after', 'difference']
    assert [panel.name for panel in picture.panels] == [f'panel_{view}' for view in views]
    scored, changed = layer(picture.panels[2]), layer(picture.panels[3])
    blue, grey, orange, faint = pictures.BLUE, pictures.GREY, pictures.ORANGE, pictures.FAINT
    assert [tuple(pixel[:3]) for pixel in scored[0, :5]] == [blue, grey, grey, grey, orange]
    assert tuple(changed[0, 1, :3]) == blue and tuple(changed[0, 5, :3]) == blue, 'found, and no longer extra'
    assert tuple(changed[0, 3, :3]) == faint and not scored[1:, :, 3].any() and scored[0, 5, 3] == 0


def test_nothing_is_drawn_outside_the_field_of_view():
    mask = np.ones((6, 8), bool)
    field = np.zeros((6, 8), bool)
    field[:, :4] = True
    picture = pictures.case_picture(np.zeros((6, 8, 3), np.uint8), mask, mask, field=field)
    assert layer(picture.panels[1])[:, :4, 3].all() and not layer(picture.panels[1])[:, 4:, 3].any()


def test_large_images_shrink_and_thin_vessels_stay():
    mask = np.zeros((1500, 3000), bool)
    mask[700] = True
    picture = pictures.pair_picture(np.zeros((1500, 3000, 3), np.uint8), mask, ~mask)
    assert (picture.width, picture.height) == (640, 320) and layer(picture.panels[1])[:, :, 3].any(0).all()
    with pytest.raises(ValueError, match='different sizes'):
        pictures.pair_picture(np.zeros((4, 4, 3), np.uint8), mask, mask[1:])


def test_the_worst_the_middle_and_the_best_are_chosen_and_no_image_twice():
    before = [dict(image_id=str(i), dice=0.5) for i in range(20)]
    after = [dict(image_id=str(i), dice=0.5 + (i - 5) / 100) for i in range(20)]
    found = choose(after, before)
    assert list(found) == ['worst', 'median', 'best', 'lowest']
    assert (found['worst'], found['best']) == ([0, 1, 2], [19, 18, 17])
    assert set(found['median']) == {9, 10, 8} or set(found['median']) == {9, 10, 11}
    shown = [index for group in found.values() for index in group]
    assert len(shown) == len(set(shown)) == 12 and found['lowest'] == [3, 4, 5]
    assert sum(map(len, choose(after[:2], before[:2]).values())) == 2
    assert list(choose(after, None)) == ['lowest', 'middle', 'highest']
