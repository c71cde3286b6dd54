"""The review page in a real headless browser, driven over Chromium's DevTools pipe (nothing to install beside it)."""
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from sa2va_dpo.datasets.annotations import PairRecord, read_pairs, write_pairs
from sa2va_dpo.drawn import draw

pytestmark = pytest.mark.integration

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome', 'microsoft-edge')


class Browser:
    """One tab of a headless Chromium. Messages go through file descriptors 3 and 4, each ended by a zero byte."""

    def __init__(self, executable: str, profile: Path) -> None:
        ours_read, theirs_write = os.pipe()
        theirs_read, ours_write = os.pipe()
        # The shell puts the pipes where the browser expects them.
        self._process = subprocess.Popen(
            ['bash', '-c', f'exec 3<&{theirs_read} 4>&{theirs_write}; exec "$@"', 'browser', executable, '--headless=new',
             '--remote-debugging-pipe', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
             '--disable-background-networking', '--no-proxy-server', '--window-size=1500,1000',
             f'--user-data-dir={profile}', 'about:blank'],
            pass_fds=(theirs_read, theirs_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, 'HOME': str(profile)}, start_new_session=True)
        os.close(theirs_read), os.close(theirs_write)
        self._in, self._out = os.fdopen(ours_read, 'rb', 0), os.fdopen(ours_write, 'wb', 0)
        os.set_blocking(ours_read, False)
        self._buffer, self._next, self._session, self.requests = b'', 0, None, []
        target = next(t for t in self.call('Target.getTargets')['targetInfos'] if t['type'] == 'page')
        self._session = self.call('Target.attachToTarget', targetId=target['targetId'], flatten=True)['sessionId']
        self.call('Page.enable'), self.call('Network.enable')

    def call(self, method: str, **params):
        self._next += 1
        message = dict(id=self._next, method=method, params=params)
        if self._session:
            message['sessionId'] = self._session
        self._out.write(json.dumps(message).encode() + b'\0')
        end = time.monotonic() + 30
        while time.monotonic() < end:
            while b'\0' in self._buffer:
                line, self._buffer = self._buffer.split(b'\0', 1)
                answer = json.loads(line)
                if answer.get('method') == 'Network.requestWillBeSent':
                    self.requests.append(answer['params']['request']['url'])
                if answer.get('id') == self._next:
                    assert 'error' not in answer, answer
                    return answer['result']
            part = self._in.read(1 << 20)
            if part:
                self._buffer += part
            elif part == b'':
                raise AssertionError('the browser has gone')
            else:
                time.sleep(0.005)
        raise AssertionError(f'{method}: no answer in 30 s')

    def js(self, expression: str):
        answer = self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in answer, answer
        return answer['result'].get('value')

    def wait(self, expression: str, seconds: float = 30):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.js(expression):
                return
            time.sleep(0.05)
        raise AssertionError(f'{expression} did not come true; the page says: ' + str(self.js('document.body.innerText'))[:500])

    def key(self, key: str):
        for kind in ('keyDown', 'keyUp'):
            self.call('Input.dispatchKeyEvent', type=kind, key=key, text=key if kind == 'keyDown' else '')

    def close(self):
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._in.close(), self._out.close()


def write_data(root: Path, pairs: int, size: int) -> None:
    """Drawn images with the ground truth against a mask that lost some vessels and gained thickness elsewhere."""
    for name in ('images', 'masks'):
        (root / name).mkdir(parents=True)
    records = []
    for index in range(pairs):
        drawn = draw('fundus', index, 5, size)
        mask = np.asarray(drawn.mask) > 0
        worse = mask.copy()
        worse[:, : size // 3] = cv2.erode(mask.astype(np.uint8), np.ones((3, 3)))[:, : size // 3] > 0
        worse[size // 2:] |= cv2.dilate(mask.astype(np.uint8), np.ones((5, 5)))[size // 2:] > 0
        cv2.imwrite(str(root / f'images/case_{index}.png'), np.asarray(drawn.image)[..., ::-1])
        for side, content in (('chosen', mask), ('rejected', worse)):
            cv2.imwrite(str(root / f'masks/case_{index}_{side}_0_1.png'), content.astype(np.uint8) * 255)
        iou = round(float((mask & worse).sum() / (mask | worse).sum()), 6)
        records.append(PairRecord(f'images/case_{index}.png', f'masks/case_{index}_chosen_0_1.png',
                                  f'masks/case_{index}_rejected_0_1.png', 1.0, iou, round(1 - iou, 6),
                                  '<image>Please segment the blood vessels.', 'ground_truth', 'morphology:mixed'))
    write_pairs(root / 'dpo_annotations.json', records)


def start(repo_root: Path, root: Path, reviewer: str):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, 'scripts/review_pairs.py', '--data_root', str(root), '--reviewer', reviewer, '--port', str(port)],
        cwd=repo_root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    line = process.stdout.readline()
    assert 'http://127.0.0.1' in line, line + process.stdout.read()
    return process, f'http://127.0.0.1:{port}/'


@pytest.fixture()
def browser(tmp_path):
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f'no browser on this machine (one of {", ".join(BROWSERS)}); on Debian: apt-get install chromium')
    found = Browser(executable, tmp_path / 'profile')
    yield found
    found.close()


def at(browser, position):
    browser.wait(f'document.querySelector(".rv")?.dataset.position === "{position}"')


def lines(root):
    text = (root / 'review/dpo_annotations.eye-1.jsonl').read_text()
    return [(entry['pair'], entry['decision']) for entry in map(json.loads, text.splitlines()[1:])]


SCALE = 'parseFloat(document.querySelector(".rv-port img").style.transform.split("scale(")[1])'


def test_a_review_from_the_first_key_to_the_merge(browser, repo_root, tmp_path, cli):
    root = tmp_path / 'data'
    write_data(root, 5, 256)
    mined = (root / 'dpo_annotations.json').read_bytes()
    server, address = start(repo_root, root, 'eye-1')
    try:
        browser.call('Page.navigate', url=address)
        at(browser, 0)
        browser.wait('[...document.querySelectorAll(".rv-port img")].every(i => i.complete && i.naturalWidth === 256)')
        assert browser.js('document.querySelectorAll(".rv-port img").length') == 4

        # Zoom: one view for all four, around the pointer, and back to fit.
        before = browser.js(SCALE)
        box = browser.js('JSON.stringify(document.querySelectorAll(".rv-port")[1].getBoundingClientRect())')
        box = json.loads(box)
        browser.call('Input.dispatchMouseEvent', type='mouseWheel', x=box['x'] + 100, y=box['y'] + 50, deltaX=0, deltaY=-400)
        browser.wait(f'Math.abs({SCALE} / {before} - Math.E) < 0.01')
        assert browser.js('new Set([...document.querySelectorAll(".rv-port img")].map(i => i.style.transform)).size') == 1
        browser.key('1')
        browser.wait(f'Math.abs({SCALE} - 1) < 1e-6')
        browser.key('0')
        browser.wait(f'Math.abs({SCALE} / {before} - 1) < 1e-6')

        ids = []
        for position, (key, decision) in enumerate([('a', 'accept'), ('s', 'swap'), ('d', 'drop')]):
            ids.append(browser.js('document.querySelector(".rv").dataset.pair'))
            browser.key(key)
            at(browser, position + 1)
            assert lines(root)[-1] == (ids[-1], decision) and len(lines(root)) == position + 1
        browser.key('b')
        at(browser, 2)
        assert len(lines(root)) == 3 and browser.js('document.querySelector(".rv-tag").textContent') == 'drop'
        browser.key('s')
        at(browser, 3)
        assert lines(root)[-1] == (ids[2], 'swap')
        browser.key('k')
        at(browser, 4)
        assert lines(root)[-1][1] == 'skip'

        browser.call('Page.reload')
        browser.wait('!document.querySelector(".rv")', 10) if browser.js('!!document.querySelector(".rv")') else None
        at(browser, 4)

        # Two presses before the next pair is shown are one decision.
        browser.js('for (let i = 0; i < 2; i++) document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "d", bubbles: true}))')
        at(browser, 5)
        assert lines(root)[-1][1] == 'drop' and len(lines(root)) == 6
        assert 'All 5 pairs seen' in browser.js('document.body.innerText')

        # Nothing of the disk is served, and nothing was fetched from elsewhere.
        status = browser.js(f'fetch("gradio_api/file={root}/dpo_annotations.json").then(r => r.status)')
        assert status in (403, 404)
        assert {url.split('/')[2] for url in browser.requests if url.startswith('http')} == {address.split('/')[2]}

        cli('scripts/review_pairs.py', '--data_root', root, '--reviewer', 'eye-1', code=2)  # held by the open page
    finally:
        server.send_signal(signal.SIGINT)
        try:
            assert server.wait(20) == 130
        finally:
            server.kill()

    cli('scripts/review_pairs.py', '--data_root', root, '--reviewer', 'eye-1', '--merge')
    merged = read_pairs(root / 'dpo_annotations.json', root)
    assert [(record.extra.get('reviewed'), record.chosen_source) for record in merged] == [
        ('accept', 'ground_truth'), ('swap', 'morphology:mixed'), ('swap', 'morphology:mixed'), (None, 'ground_truth')]
    assert (root / 'review/dpo_annotations.original.json').read_bytes() == mined
