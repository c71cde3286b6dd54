"""The review pages in a real headless browser."""
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from sa2va_dpo.datasets.annotations import PairRecord, read_pairs, write_pairs
from sa2va_dpo.datasets.mask_io import read_mask
from sa2va_dpo.drawn import draw
from sa2va_dpo.review.picks import Composite, picks_to_records, read_picks

pytestmark = pytest.mark.integration
PROMPT = '<image>Please segment the blood vessels.'


def variants(mask: np.ndarray) -> list[np.ndarray]:
    """The mask, one whose left part lost vessels and whose lower part gained thickness, one that is thick, one that is
    cut."""
    size, plain = len(mask), mask.astype(np.uint8)
    worse = mask.copy()
    worse[:, :size // 3] = cv2.erode(plain, np.ones((3, 3)))[:, :size // 3] > 0
    worse[size // 2:] |= cv2.dilate(plain, np.ones((5, 5)))[size // 2:] > 0
    thick = cv2.dilate(plain, np.ones((3, 3))) > 0
    cut = mask.copy()
    cut[:, size // 2:] = False
    return [mask, worse, thick, cut]


def write_images(root: Path, count: int, size: int = 256):
    """(name, mask) of drawn images, written below ``images``; two thirds of the names are not ASCII."""
    (root / 'images').mkdir(parents=True)
    for index in range(count):
        drawn = draw('fundus', index, 5, size)
        name = f'images/{("病例", "case", "каз {x}")[index % 3]}_{index}.png'
        cv2.imwrite(str(root / name), np.asarray(drawn.image)[..., ::-1])
        yield name, np.asarray(drawn.mask) > 0


def write_pair_data(root: Path, count: int, size: int = 256) -> None:
    (root / 'masks').mkdir(parents=True)
    records = []
    for index, (name, mask) in enumerate(write_images(root, count, size)):
        worse = variants(mask)[1]
        for side, content in (('chosen', mask), ('rejected', worse), ('gt', mask)):
            cv2.imwrite(str(root / f'masks/{index}_{side}.png'), content.astype(np.uint8) * 255)
        iou = round(float((mask & worse).sum() / (mask | worse).sum()), 6)
        extra = dict(judge='best {of} two', chosen_score=0.9, rejected_score=0.2) if index == 1 else {}
        records.append(PairRecord(name, f'masks/{index}_chosen.png', f'masks/{index}_rejected.png', 1.0, iou,
                                  round(1 - iou, 6), PROMPT, 'ground_truth', 'morphology:mixed',
                                  f'masks/{index}_gt.png' if index == 0 else None, extra))
    write_pairs(root / 'dpo_annotations.json', records)


def write_pick_data(root: Path, count: int) -> None:
    (root / 'candidates').mkdir(parents=True)
    content = []
    for index, (name, mask) in enumerate(write_images(root, count)):
        for k, candidate in enumerate(variants(mask)):
            cv2.imwrite(str(root / f'candidates/{index}_{k}.png'), candidate.astype(np.uint8) * 255)
        content.append(dict(image=name, prompt=PROMPT, candidates=[
            dict(mask=f'candidates/{index}_{k}.png', source=f'secret{k}', predicted_iou=0.5) for k in range(4)]))
    (root / 'candidates.json').write_text(json.dumps(content))


class Page:
    """The command as a user starts it, and the address that it prints."""

    def __init__(self, repo_root: Path, root: Path, reviewer: str, *flags: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                'scripts/review_pairs.py',
                '--data_root',
                str(root),
                '--reviewer',
                reviewer,
                '--port',
                '0',
                *flags,
            ],
            cwd=repo_root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONIOENCODING': 'utf-8'},
        )
        self.printed = [self.process.stdout.readline(), self.process.stdout.readline()]
        assert 'http://127.0.0.1:' in self.printed[1], ''.join(self.printed) + self.process.stdout.read()
        self.address = self.printed[1].strip()
        self.port = int(re.search(r':(\d+)/', self.address)[1])

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) == 130

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def ask(self, path: str, **headers) -> tuple[int, dict]:
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=20)
        connection.request('GET', path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders())


@pytest.fixture()
def start(repo_root):
    pages = []

    def begin(*arguments) -> Page:
        pages.append(Page(repo_root, *arguments))
        return pages[-1]

    yield begin
    for page in pages:
        page.end()


def at(browser, position):
    """Wait until the item at a position is on the screen, drawn, and the page takes keys again."""
    browser.wait(
        f'window.page && page.at === {position} && (page.ended || !!page.data || !!page.problem) && !page.waiting'
    )
    browser.js('new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))).then(() => 1)')


def journal_lines(root, pattern):
    path, = (root / 'review').glob(pattern)
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()[1:]]


def middle(browser, selector):
    box = browser.box(selector)
    return round(box['y'] + box['height'] / 2)


_DATA = """const shown = document.querySelectorAll(".panel canvas")[%d],
            canvas = new OffscreenCanvas(shown.width, shown.height);
    const context = canvas.getContext("2d", {willReadFrequently: true});
    context.drawImage(shown, 0, 0);
    const data = context.getImageData(0, 0, canvas.width, canvas.height).data;"""


def pixels(browser, panel=0):
    """A number that tells what a panel shows, once what was asked for has been painted."""
    return browser.js(f"""(async () => {{
        await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))); {_DATA % panel}
        let sum = 0;
        for (let i = 0; i < data.length; i += 4)
            sum = (sum * 31 + data[i] + 3 * data[i + 1] + 7 * data[i + 2]) % 1000000007;
        return sum; }})()""")


def blue(browser, panel):
    """How many pixels of a panel have the colour of a mask, once it has been painted."""
    return browser.js(f"""(async () => {{
        await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))); {_DATA % panel}
        let count = 0;
        for (let i = 0; i < data.length; i += 4) count += data[i + 2] > 160 && data[i] < 110;
        return count; }})()""")


def test_pairs_from_the_first_key_to_the_merge(browser, start, tmp_path, cli):
    root = tmp_path / 'data'
    write_pair_data(root, 6)
    mined = (root / 'dpo_annotations.json').read_bytes()
    page = start(root, '医生1')
    browser.open(page.address)
    at(browser, 0)
    assert browser.js('location.href') == f'http://127.0.0.1:{page.port}/', 'the token leaves the address line'
    assert browser.js('document.querySelectorAll(".panel").length') == 4
    assert '病例_0' in browser.js('document.getElementById("name").textContent')

    # Zoom: one view for all four, around the pointer, and back to fit.
    fit = browser.js('page.view.scale')
    box = browser.box('[data-sheet=chosen] .port')
    x, y = round(box['x'] + box['width'] / 2 + 40), round(box['y'] + 100)
    point = f'[({x - box["x"]} - page.view.x) / page.view.scale, ({y - box["y"]} - page.view.y) / page.view.scale]'
    before = browser.js(point)
    browser.wheel(x, y, -400)
    browser.wait(f'Math.abs(page.view.scale / {fit} - Math.E) < 0.01')
    assert browser.js(point) == pytest.approx(before, abs=0.01)
    browser.drag(box['x'] + 100, box['y'] + 100, 30, -20)
    browser.key('1')
    browser.wait('Math.abs(page.view.scale - 1) < 1e-6')
    browser.key('0')
    browser.wait(f'Math.abs(page.view.scale / {fit} - 1) < 1e-6')

    # Contours, tint, mask only; away while space is held.
    contours = pixels(browser, 1)
    assert blue(browser, 1) > 100 and blue(browser, 0) == 0
    browser.key('t')
    at(browser, 0)
    tint = pixels(browser, 1)
    browser.key('t')
    at(browser, 0)
    assert len({contours, tint, pixels(browser, 1)}) == 3
    browser.key(' ', up=False)
    at(browser, 0)
    assert pixels(browser, 1) == pixels(browser, 0)
    browser.release(' ')
    browser.key('t')
    at(browser, 0)
    assert pixels(browser, 1) == contours

    # Ground truth is hidden until it is asked for, and not there on the next pair.
    plain = pixels(browser, 0)
    browser.key('g')
    at(browser, 0)
    assert pixels(browser, 0) != plain and 'Ground truth' in browser.js('document.body.innerText')
    browser.key('g')
    at(browser, 0)
    assert pixels(browser, 0) == plain

    # Two in one place, by hand and by themselves.
    browser.key('x')
    browser.wait('document.querySelectorAll(".panel").length === 1')
    assert browser.js('page.single.shown') == 'chosen'
    browser.key('x')
    browser.wait('page.single.shown === "rejected"')
    browser.wait('page.single.shown === "chosen"')
    browser.key('Escape')
    browser.wait('document.querySelectorAll(".panel").length === 4')

    # A note of any characters.
    browser.key('n')
    browser.wait('document.activeElement.tagName === "TEXTAREA"')
    browser.type('太细 {x} <b>a</b> "')
    browser.key('Enter', modifiers=2)
    browser.wait('!document.querySelector("dialog")')
    assert journal_lines(root, '*.jsonl')[-1]['note'] == '太细 {x} <b>a</b> "'

    ids = []
    for position, (key, decision) in enumerate([('a', 'accept'), ('s', 'swap'), ('d', 'drop')]):
        ids.append(browser.js('page.item.key'))
        browser.key(key)
        at(browser, position + 1)
        last = journal_lines(root, '*.jsonl')[-1]
        assert (last['pair'], last['decision']) == (ids[-1], decision) and last['seconds'] >= 0
        if position == 0:
            assert 'best {of} two 0.900' in browser.js('document.body.innerText')
            assert browser.js('page.data.item.gt') is False
    browser.key('b')
    at(browser, 2)
    assert browser.js('document.getElementById("tag").textContent') == 'drop'
    browser.key('s')
    at(browser, 3)
    browser.key('k')
    at(browser, 4)
    # Arrows move without deciding.
    browser.key('ArrowLeft'), at(browser, 3), browser.key('ArrowRight'), at(browser, 4)
    assert len(journal_lines(root, '*.jsonl')) == 6

    # Overview and jump.
    browser.key('o')
    browser.wait('document.querySelectorAll("#overview .card img").length === 6 && '
                 '[...document.querySelectorAll("#overview img")].every(i => i.complete && i.naturalWidth > 0)')
    assert browser.js(
        '[...document.querySelectorAll("#overview .card")].map(c => c.querySelector(".tag").textContent)'
    ) == ['accept', 'swap', 'swap', 'skip', 'undecided', 'undecided']
    browser.key('d')  # a key for the page below must not decide
    browser.press('#overview .card:nth-child(2)')
    at(browser, 1)
    for typed, place in (('5', 4), ('病例_3', 3), ('{X}_5', 5)):
        browser.key('j')
        browser.wait('document.activeElement.tagName === "INPUT"')
        browser.type(typed)
        browser.key('Enter')
        at(browser, place)
    browser.key('?')
    browser.wait('!!document.querySelector("#help dt")')
    browser.key('Escape')
    browser.wait('!document.querySelector("dialog")')
    assert len(journal_lines(root, '*.jsonl')) == 6

    browser.js('page = undefined')
    browser.call('Page.reload')
    at(browser, 4)
    # Two presses before the next pair is shown are one decision.
    browser.js(
        'for (let i = 0; i < 2; i++) document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "d", bubbles: '
        'true}))'
    )
    at(browser, 5)
    assert len(journal_lines(root, '*.jsonl')) == 7
    browser.press('#do-accept')
    at(browser, 6)
    assert 'All 6 pairs seen' in browser.js('document.body.innerText')

    # The other language, at once and after coming back.
    browser.press('#tools .word')
    browser.wait('document.body.innerText.includes("全部 6 对已看完")')
    assert browser.js('document.documentElement.lang') == 'zh-Hans'

    assert browser.problems == [] and browser.js('document.cookie') == ''
    assert {url.split('/')[2] for url in browser.requests if url.startswith('http')} == {f'127.0.0.1:{page.port}'}
    cli(
        'scripts/review_pairs.py', '--data_root', root, '--reviewer', '医生1', '--port', '0', code=2
    )  # held by the open page
    page.interrupt()
    rest = page.process.stdout.read().splitlines()
    assert len(rest) == 1 and rest[0].startswith('interrupted: every decision is kept'), 'no warnings in the terminal'

    cli('scripts/review_pairs.py', '--data_root', root, '--reviewer', '医生1', '--merge')
    merged = read_pairs(root / 'dpo_annotations.json', root)
    assert [(record.extra.get('reviewed'), record.chosen_source) for record in merged] == [
        ('accept', 'ground_truth'), ('swap', 'morphology:mixed'), ('swap', 'morphology:mixed'), (None, 'ground_truth'),
        ('accept', 'ground_truth')]
    assert merged[0].extra['reviewers'] == ['医生1'] and merged[0].extra['review_notes'] == {
        '医生1': '太细 {x} <b>a</b> "'
    }
    assert (root / 'review/dpo_annotations.original.json').read_bytes() == mined


def test_picks_from_the_first_click_to_the_pairs(browser, start, tmp_path, cli):
    root = tmp_path / 'data'
    write_pick_data(root, 6)
    page = start(root, '医生1', '--clicks', '5', '--exit-when-done')  # no pairs there: --pick goes without saying
    browser.open(page.address)
    at(browser, 0)
    images = browser.js('page.items.map(item => item.image)')
    apart = {entry['image']: entry for entry in json.loads((root / 'candidates.json').read_text())}
    assert len(images) == 6 and set(images) == set(apart)
    assert 'secret' not in browser.js('document.documentElement.outerHTML') and '0.5' not in browser.js(
        'document.body.innerText'
    )
    assert browser.js('document.querySelectorAll("[data-pick]").length') == 4
    assert browser.js('document.querySelectorAll(".panel").length') == 5
    assert all(blue(browser, panel) > 50 for panel in range(1, 5)) and blue(browser, 0) == 0

    # Three ways to draw; every candidate differs from the others.
    looks = set()
    for _ in range(3):
        looks |= {pixels(browser, panel) for panel in range(5)}
        browser.key('t')
        at(browser, 0)
    assert len(looks) == 13  # the image itself looks the same three times

    # The frame, two in one place, blink: nobody can pick what changes under the finger.
    browser.key('ArrowDown')
    assert browser.js('page.framed') == 1
    browser.key('x')
    browser.wait('document.querySelectorAll(".panel").length === 1')
    assert browser.js('page.single.shown') == 1 and browser.js('!!document.getElementById("do-shown")')
    browser.key('x')
    browser.wait('page.single.shown === 2')
    browser.key('Enter')
    assert browser.js('!document.getElementById("do-shown")') and not journal_lines(root, 'picks.*.jsonl')
    browser.wait('page.single.shown === 1')
    browser.key('Escape')
    at(browser, 0)

    # By key, by button, by Enter on the frame, none, and back.
    browser.key('2')
    at(browser, 1)
    browser.press('[data-pick="2"]')
    at(browser, 2)
    browser.key('0')
    at(browser, 3)
    browser.key('b')
    at(browser, 2)
    browser.key('e')
    at(browser, 3)
    said = [(line['image'], line['pick']) for line in journal_lines(root, 'picks.*.jsonl')]
    assert [image for image, _ in said] == [images[0], images[1], images[2], images[2]]
    assert [pick for _, pick in said[2:]] == ['none', 'equal']
    assert all(isinstance(pick, int) for _, pick in said[:2])
    # What was picked is what stood there.
    index = said[0][1]
    (
        browser.key('ArrowLeft'),
        at(browser, 2),
        browser.key('ArrowLeft'),
        at(browser, 1),
        browser.key('ArrowLeft'),
        at(browser, 0),
    )
    assert browser.js('page.data.item.place') == 1
    shown = np.array(browser.js('Array.from(page.data.masks[1].bits)'), bool).reshape(256, 256)
    assert (shown == read_mask(root / apart[images[0]]['candidates'][index]['mask'])).all()
    for place in (1, 2, 3):
        browser.key('ArrowRight')
        at(browser, place)

    # Regions: begin with a candidate, click one part over, use it.
    browser.key('r')
    browser.wait('!!page.aiming && document.querySelectorAll(".panel").length === 1')
    browser.key('1')
    at(browser, 3)
    region = browser.js('''(() => { const { labels, width } = page.aiming, size = new Map();
        labels.forEach(label => label && size.set(label, (size.get(label) ?? 0) + 1));
        const best = [...size].sort((a, b) => b[1] - a[1])[2][0], i = labels.indexOf(best);
        return [best, i % width + .5, Math.floor(i / width) + .5,
                page.aiming.on[best], page.aiming.data.masks[0].bits[i]]; })()''')
    label, x, y, was, base = region
    assert was == base
    box = browser.box('.port')
    view = browser.js('[page.view.x, page.view.y, page.view.scale]')
    looked = pixels(browser)
    browser.click(box['x'] + view[0] + x * view[2], box['y'] + view[1] + y * view[2])
    browser.wait(f'page.aiming.on[{label}] === {1 - was}')
    at(browser, 3)
    assert pixels(browser) != looked
    wanted = np.array(
        browser.js('''(() => { const { labels, on, data } = page.aiming;
        return Array.from(labels, (label, i) => label ? on[label] : data.masks[0].bits[i]); })()'''),
        bool,
    ).reshape(256, 256)
    browser.drag(box['x'] + 200, box['y'] + 200, 50, 30)  # moving is no click
    assert browser.js('page.aiming.clicks') == 2
    browser.key('Enter')
    at(browser, 4)
    line = journal_lines(root, 'picks.*.jsonl')[-1]
    assert line['image'] == images[3] and line['clicks'] == 3 and line['seconds'] > 0
    assert line['pick']['mask'].startswith('picks/') and line['pick']['mask'].isascii() is images[3].isascii()
    assert (read_mask(root / line['pick']['mask']) == wanted).all()
    # Leaving decides nothing.
    browser.key('r')
    browser.wait('!!page.aiming')
    browser.key('Escape')
    browser.wait('!page.aiming')

    browser.key('Enter')  # the fifth: what was asked for
    browser.wait('page.ended && document.body.innerText.includes("5 images decided: that is what was asked for.")')
    assert browser.problems == []
    # Back within the time stops the clock; then it ends by itself.
    browser.key('b')
    at(browser, 4)
    time.sleep(7)
    assert page.process.poll() is None
    browser.key('0')
    browser.wait('page.ended')
    assert page.process.wait(30) == 0
    browser.wait('document.body.innerText.includes("The page has ended")')
    rest = page.process.stdout.read()
    assert rest.startswith('5 images decided by 医生1: 2 picked, 1 put together, 1 about equal, 1 without a good one')
    assert len(rest.splitlines()) == 1

    picks = read_picks(root)
    records = picks_to_records(root, picks)
    assert isinstance(picks.agreed[images[3]].pick, Composite)
    assert (
        len([r for r in records if r.image == images[0]]) == 3
        and len([r for r in records if r.image == images[3]]) == 4
    )
    cli('scripts/review_pairs.py', '--data_root', root, '--reviewer', '医生1', '--pick', '--merge')
    assert read_pairs(root / 'dpo_annotations.json', root) == records
    # The budget is used up: the job need not wait.
    done = cli(
        'scripts/review_pairs.py',
        '--data_root',
        root,
        '--reviewer',
        '医生1',
        '--pick',
        '--clicks',
        '5',
        '--exit-when-done',
    )
    assert '5 images decided' in done.stdout and 'http' not in done.stdout


def test_a_phone(browser, start, tmp_path):
    root = tmp_path / 'data'
    write_pick_data(root, 2)
    page = start(root, 'phone', '--pick', '--lang', 'zh')
    browser.screen(390, 844, phone=True)
    browser.open(page.address)
    at(browser, 0)
    assert '第 1 张，共 2 张' in browser.js('document.body.innerText')
    assert browser.js('document.documentElement.scrollWidth') <= 390, 'nothing sticks out'
    assert browser.js('[...document.querySelectorAll("button")].every(b => b.getBoundingClientRect().height >= 32)')
    # Below each other; one finger scrolls.
    boxes = json.loads(
        browser.js('JSON.stringify([...document.querySelectorAll(".panel")].map(p => p.getBoundingClientRect()))')
    )
    assert len(boxes) == 4 and all(box['width'] > 350 for box in boxes) and boxes[1]['y'] > boxes[0]['y'] + 200
    browser.touch(*[[(200, y)] for y in range(600, 250, -25)])
    browser.wait('window.scrollY > 100')
    assert not browser.js('page.view.zoomedIn') and browser.js('page.at') == 0
    # Two fingers zoom all; then one moves.
    browser.js('document.querySelector("[data-sheet=\\"2\\"]").scrollIntoView({block: "center"})')
    at(browser, 0)
    y = middle(browser, '[data-sheet="2"] .port')
    browser.touch(*[[(180 - d, y), (220 + d, y)] for d in range(0, 100, 20)])
    browser.wait('page.view.zoomedIn')
    assert browser.js('page.view.scale / page.view.fitScale') == pytest.approx(200 / 40, rel=0.05)
    assert browser.js('visualViewport.scale') == 1, 'the page itself is not zoomed'
    scrolled, x = browser.js('window.scrollY'), browser.js('page.view.x')
    browser.touch([(200, y)], [(220, y - 20)], [(250, y - 50)])
    browser.wait(f'Math.abs(page.view.x - {x} - 50) < 2')
    assert browser.js('window.scrollY') == scrolled
    # A tap chooses the frame, pressing and holding shows the image, the button decides.
    browser.js('page.view.fit(), window.scrollTo(0, 0)')
    at(browser, 0)
    box = browser.box('[data-sheet="1"] .port')
    browser.touch([(box['x'] + 50, box['y'] + 50)])
    browser.wait('page.framed === 1')
    browser.call('Input.dispatchTouchEvent', type='touchStart', touchPoints=[dict(x=box['x'] + 50, y=box['y'] + 50)])
    browser.wait('page.view.bare')
    browser.call('Input.dispatchTouchEvent', type='touchEnd', touchPoints=[])
    browser.wait('!page.view.bare')
    assert not journal_lines(root, 'picks.*.jsonl')
    box = browser.box('[data-pick="0"]')
    browser.touch([(box['x'] + 20, box['y'] + 10)])
    at(browser, 1)
    assert len(journal_lines(root, 'picks.*.jsonl')) == 1
    assert browser.problems == []


def test_only_the_browser_that_opened_the_printed_address(browser, start, tmp_path):
    root = tmp_path / 'data'
    write_pick_data(root, 2)
    page = start(root, 'best {of} two', '--pick')
    host = f'127.0.0.1:{page.port}'
    path = page.address.split(host)[1]
    assert page.ask('/')[0] == 403 and page.ask(path, Host='evil.example')[0] == 403
    assert (
        page.ask(path, Host=f'evil.example:{page.port}')[0] == 403
        and page.ask(path, Origin='http://evil.example')[0] == 403
    )
    # None of these used the address up.
    browser.open(page.address)
    at(browser, 0)
    assert browser.js('page.set.reviewer') == 'best {of} two'
    # Used: refused, and a new one is printed for whoever reads the terminal.
    assert page.ask(path)[0] == 403
    fresh = page.process.stdout.readline().strip()
    assert fresh != page.address and page.ask(fresh.split(host)[1])[0] == 200
    # Another site, by its name (DNS rebinding) or by its scripts, gets nothing; nor can it put the page into a frame.
    browser.open('data:text/html,<title>evil</title>')
    browser.wait('document.title === "evil"')
    for attempt in (f'fetch("http://{host}/api/set", {{credentials: "include"}})',
                    f'fetch("http://{host}/api/decide", {{method: "POST", credentials: "include", body: "{{}}"}})'):
        assert browser.js(f'{attempt}.then(answer => answer.text(), () => "refused")') == 'refused'
    lines = [path.read_bytes() for path in (root / 'review').iterdir()]
    browser.js(f'document.body.innerHTML = `<iframe src="http://{host}/"></iframe><form method=post enctype=text/plain '
               f'action="http://{host}/api/decide" target=f><input name=x></form>`; document.forms[0].submit()')
    time.sleep(1)
    assert [path.read_bytes() for path in (root / 'review').iterdir()] == lines
    # The reviewer comes back without a token: the cookie is enough.
    browser.open(f'http://{host}/')
    at(browser, 0)
    page.interrupt()
    browser.key('1')
    browser.wait('!document.getElementById("banner").hidden')
    assert (
        'does not answer' in browser.js('document.getElementById("banner").textContent') and browser.js('page.at') == 0
    )


def test_a_picture_that_cannot_be_read_stops_nobody(browser, start, tmp_path):
    root = tmp_path / 'data'
    write_pair_data(root, 2)
    cv2.imwrite(str(root / 'masks/0_rejected.png'), np.zeros((4, 4), np.uint8))
    page = start(root, 'eye')
    browser.open(page.address)
    at(browser, 0)
    assert '0_rejected.png: is 4 x 4 pixels' in browser.js('document.body.innerText')
    browser.key('d')
    at(browser, 1)
    assert journal_lines(root, '*.jsonl')[-1]['decision'] == 'drop'
