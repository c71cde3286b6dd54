"""Screenshots of the pages, for the documentation:

    python -m tests.integration.screenshots docs/images review demo
    python -m tests.integration.screenshots docs/images report --job work_dirs/dpo_vessel_training

Everything on them is drawn from seeds (``sa2va_dpo.drawn``) or made by the bundled checkpoint; ``report`` shows the
top of a finished job's ``report.html``. A browser as for the tests of the pages is needed.
"""
from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sa2va_dpo.common.bundled import bundled_checkpoint
from sa2va_dpo.drawn import draw
from tests.integration import test_demo_page, test_review_page
from tests.integration.browser import Browser, find_browser

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 1500, 900


def review(browser: Browser, root: Path, out: Path) -> None:
    test_review_page.write_pair_data(root / 'data', 5, size=512)
    page = test_review_page.Page(ROOT, root / 'data', 'eye-1', '--lang', 'en')
    try:
        browser.open(page.address)
        for place in range(4):
            test_review_page.at(browser, place)
            browser.key('ArrowRight')
        test_review_page.at(browser, 4)
        save(browser, out / 'review_page.png')
    finally:
        page.end()


def demo(browser: Browser, root: Path, out: Path) -> None:
    path = root / 'case.png'
    cv2.imwrite(str(path), np.asarray(draw('fundus', 1, 5, 640).image)[..., ::-1])
    page = test_demo_page.Page(ROOT, '--model', bundled_checkpoint(), '--lang', 'en')
    try:
        browser.open(page.address)
        test_demo_page.drop(browser, path)
        browser.wait("document.querySelector('#mask-0 img')?.naturalWidth > 0", 300)
        save(browser, out / 'demo_page.png')
    finally:
        page.end()


def report(browser: Browser, job: Path, out: Path) -> None:
    browser.open((job / 'report.html').resolve().as_uri())
    browser.wait("document.readyState === 'complete'")
    save(browser, out / 'report.png')


def save(browser: Browser, path: Path) -> None:
    """As PNG of 256 colours: a third of the bytes."""
    with tempfile.TemporaryDirectory() as folder:
        browser.screenshot(Path(folder) / 'page.png')
        content = io.BytesIO()
        Image.open(Path(folder) / 'page.png').convert('RGB').quantize(256, dither=Image.Dither.NONE).save(
            content, 'PNG', optimize=True)
    path.write_bytes(content.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('pages', nargs='+', choices=('review', 'demo', 'report'))
    parser.add_argument('--job', type=Path, help='work directory of a finished job, for report')
    args = parser.parse_args()
    for name in args.pages:
        with tempfile.TemporaryDirectory() as folder:
            browser = Browser(find_browser() or 'chromium', Path(folder) / 'profile')
            try:
                browser.screen(WIDTH, HEIGHT)
                if name == 'report':
                    report(browser, args.job, args.out)
                else:
                    dict(review=review, demo=demo)[name](browser, Path(folder), args.out)
            finally:
                browser.close()


if __name__ == '__main__':
    main()
