"""The page of ``sa2va-dpo predict --demo`` in a real headless browser."""
from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from sa2va_dpo.drawn import draw
from tests.integration.browser import Browser

pytestmark = pytest.mark.integration


class Page:
    """The command as a user starts it, and the address that it prints."""

    def __init__(self, repo_root: Path, *flags: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, 'tools/predict.py', '--demo', '--port', '0', '--device', 'cpu', *map(str, flags)],
            cwd=repo_root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONIOENCODING': 'utf-8', **environment})
        self.printed = ''
        for line in self.process.stdout:
            self.printed += line
            if 'http://' in line:
                break
        found = re.search(r'http://127\.0\.0\.1:(\d+)/', self.printed)
        assert found, self.printed
        self.address, self.port = found[0], int(found[1])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope='module')
def other(micro_checkpoint, tmp_path_factory):
    """A checkpoint whose masks are others: the first half of its weights are another's."""
    from safetensors.torch import load_file, save_file

    copy = tmp_path_factory.mktemp('other') / 'trained'
    shutil.copytree(micro_checkpoint, copy)
    weights = load_file(copy / 'model.safetensors')
    for name in weights:
        if 'mask_decoder' in name and weights[name].ndim > 1:
            weights[name] = weights[name] * 1.3
    save_file(weights, copy / 'model.safetensors', metadata={'format': 'pt'})
    return copy


@pytest.fixture(scope='module')
def page(repo_root, micro_checkpoint, other):
    pytest.importorskip('gradio')
    found = Page(repo_root, '--model', micro_checkpoint, '--compare', other, '--lang', 'en')
    yield found
    found.end()


@pytest.fixture(scope='module')
def image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('image') / 'case.png'
    assert cv2.imwrite(str(path), np.asarray(draw('fundus', 1, 5, 320).image)[..., ::-1])
    return path


def drop(browser: Browser, path: Path) -> None:
    """Give the page a file, as its dialogue or a drop would."""
    browser.wait("!!document.querySelector('#file input[type=file]')")
    root = browser.call('DOM.getDocument')['root']['nodeId']
    node = browser.call('DOM.querySelector', nodeId=root, selector='#file input[type=file]')['nodeId']
    browser.call('DOM.setFileInputFiles', nodeId=node, files=[str(path)])


def source(browser: Browser, name: str) -> str:
    return browser.js(f"document.querySelector('#{name} img')?.src ?? ''")


def pixels(browser: Browser, name: str) -> list[int]:
    """Of the picture: number of pixels, and of those whose red is bright."""
    return browser.js(f'''(async () => {{
        const image = new Image(); image.src = document.querySelector('#{name} img').src; await image.decode();
        const canvas = new OffscreenCanvas(image.width, image.height), context = canvas.getContext('2d');
        context.drawImage(image, 0, 0);
        const data = context.getImageData(0, 0, image.width, image.height).data;
        let bright = 0; for (let i = 0; i < data.length; i += 4) bright += data[i] > 127;
        return [data.length / 4, bright]; }})()''')


def set_threshold(browser: Browser, value: float) -> None:
    browser.js(f'''(() => {{ const slider = document.querySelector('#threshold input[type=range]');
        slider.value = {value}; slider.dispatchEvent(new Event('input', {{ bubbles: true }}));
        slider.dispatchEvent(new Event('change', {{ bubbles: true }})); }})()''')


PICTURES = ('image', 'overlay-0', 'overlay-1', 'mask-0', 'mask-1', 'difference')


def test_two_checkpoints_side_by_side_and_another_threshold(page, browser, image, tmp_path):
    browser.open(page.address)
    drop(browser, image)
    for name in PICTURES:
        browser.wait(f"document.querySelector('#{name} img')?.naturalWidth > 0", 60)
    count, before = pixels(browser, 'mask-0')
    assert count == 320 * 320 and pixels(browser, 'image')[0] == count
    assert [pixels(browser, name)[0] for name in PICTURES] == [count] * 6
    text = browser.js("document.querySelector('#table').innerText")
    assert 'branch points' in text and 'Dice between the two masks' in text and 'trained' in text
    assert f'{before:,}' in text, 'the table counts the pixels that the mask shows'
    old = source(browser, 'mask-0')
    set_threshold(browser, 0.05)
    browser.wait(f"document.querySelector('#mask-0 img')?.src !== {old!r}")
    browser.wait("document.querySelector('#mask-0 img')?.naturalWidth > 0")
    lower = pixels(browser, 'mask-0')[1]
    assert lower >= before and (lower > before or lower == count)
    browser.screenshot(tmp_path / 'demo.png')
    away = [address for address in browser.requests
            if not address.startswith((page.address, 'data:', 'blob:', 'about:'))]
    assert not away, 'the page asks nobody but this machine'
    # What gradio's own client says when an answer ends.
    assert not [problem for problem in browser.problems if problem != 'Method not implemented.'], browser.problems


def test_what_cannot_be_read_is_said_on_the_page(page, browser, tmp_path):
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'\x89PNG\r\n\x1a\nrubbish')
    browser.open(page.address)
    drop(browser, broken)
    browser.wait("(document.body?.innerText ?? '').includes('cannot be read as an image')")
    assert 'Traceback' not in browser.js('document.body.innerText')
    assert page.process.poll() is None


def test_other_hosts_are_refused_and_no_interface_is_shown(page):
    for host, status in (('127.0.0.1', 200), ('localhost', 200), ('evil.example', 400)):
        connection = http.client.HTTPConnection('127.0.0.1', page.port, timeout=20)
        connection.request('GET', '/', headers=dict(Host=f'{host}:{page.port}'))
        assert connection.getresponse().status == status, host
        connection.close()


def test_chinese_from_the_environment_and_ctrl_c(repo_root, micro_checkpoint, browser, image):
    pytest.importorskip('gradio')
    page = Page(repo_root, '--model', micro_checkpoint, LANG='zh_CN.UTF-8', LC_ALL='')
    try:
        browser.open(page.address)
        browser.wait("(document.body?.innerText ?? '').includes('血管分割')")
        drop(browser, image)
        browser.wait("document.querySelector('#mask-0 img')?.naturalWidth > 0", 60)
        assert not browser.js("!!document.querySelector('#difference')")
        assert '分支点' in browser.js("document.querySelector('#table').innerText")
        page.process.send_signal(signal.SIGINT)
        assert page.process.wait(30) == 130
    finally:
        page.end()


@pytest.mark.parametrize('flags, words', [
    (('--demo', '--input', 'x', '--batch-size', '2'), 'writes no files: leave --input, --batch-size out'),
    ((), 'give --input and --output, or --demo'),
    (('--input', 'x', '--output', 'y', '--compare', 'z'), '--compare: is for --demo'),
    (('--demo', '--compare', 'MODEL'), 'is the same folder as --model'),
    (('--demo', '--port', '70000'), '--port 70000')])
def test_flags_that_do_not_go_together(cli, micro_checkpoint, flags, words):
    flags = [micro_checkpoint if flag == 'MODEL' else flag for flag in flags]
    done = cli('tools/predict.py', '--model', micro_checkpoint, *flags, code=2)
    assert words in done.stderr and done.stderr.count('\n') == 1
