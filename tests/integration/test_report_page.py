"""``report.html`` in a real headless browser, opened from the disk as a user does."""
import json
import time

import pytest

from sa2va_dpo.commands.job.page import write_page
from tests.integration.browser import BROWSERS, Browser, find_browser
from tests.unit.reporting.conftest import JobFolder

pytestmark = pytest.mark.integration
OPEN = 'document.getElementById("viewer").open'


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    job = JobFolder(tmp_path_factory.mktemp('report') / 'job', names=[f'case_{index:02d}' for index in range(12)])
    return write_page(job.write(), 'en')


@pytest.fixture
def browser(tmp_path, page):
    executable = find_browser()
    if executable is None:
        pytest.skip(f'no browser on this machine (one of {", ".join(BROWSERS)}); on Debian: apt-get install chromium')
    browser = Browser(executable, tmp_path / 'profile')
    try:
        browser.open(page.as_uri())
        browser.wait('document.readyState === "complete"')
        yield browser
    finally:
        browser.close()


def settled(browser, expression):
    """Its value once whatever a key sets in motion is over."""
    time.sleep(0.3)
    return browser.js(expression)


def test_it_loads_whole_and_asks_for_nothing(browser, page):
    assert browser.problems == []
    assert [address for address in browser.requests if not address.startswith('data:')] == [page.as_uri()]
    assert browser.js('[...document.images].length') > 20
    assert browser.js('[...document.images].filter(image => !image.complete || !image.naturalWidth).length') == 0
    assert browser.js('getComputedStyle(document.querySelector(".photo")).backgroundImage').startswith('url("data:')


@pytest.mark.parametrize('selector', ['.panel', '[data-open]'])
@pytest.mark.parametrize('key', ['Enter', ' '])
def test_a_key_on_a_focused_picture_or_point_opens_it_and_leaves_it_open(browser, selector, key):
    browser.js(f'document.querySelector({selector!r}).focus()')
    browser.key(key)
    assert settled(browser, OPEN)
    browser.key(key)
    assert settled(browser, OPEN), 'nothing is chosen in the viewer that a second press would close'
    browser.key('Escape')
    assert not settled(browser, OPEN) and browser.problems == []


def test_a_key_that_is_held_down_opens_once(browser):
    browser.js('window.shown = 0; document.getElementById("viewer").addEventListener("close", () => window.shown++);'
               'document.querySelector(".panel").focus()')
    for _ in range(6):
        browser.call('Input.dispatchKeyEvent', type='keyDown', key='Enter', text='\r', windowsVirtualKeyCode=13,
                     autoRepeat=_ > 0)
    browser.release('Enter')
    assert settled(browser, OPEN) and browser.js('window.shown') == 0


def test_the_keyboard_goes_through_views_and_images(browser):
    def caption():
        return browser.js('document.getElementById("caption").textContent')

    browser.js('document.querySelector(".panel").click()')
    first = caption()
    assert first.startswith('case_') and first.endswith('Image')
    browser.key('ArrowRight')
    assert caption().endswith('Before') and caption().split(' ')[0] == first.split(' ')[0]
    browser.key('ArrowDown')
    assert caption().endswith('Before') and caption().split(' ')[0] != first.split(' ')[0]
    browser.key('ArrowUp')
    browser.key('ArrowLeft')
    assert caption() == first
    browser.key('h')
    assert browser.js('document.getElementById("stage").classList.contains("bare")')
    browser.press('#close')
    assert not settled(browser, OPEN)
    assert browser.js('document.activeElement.classList.contains("panel")'), 'the focus is where it was'


@pytest.mark.parametrize('width, height, phone', [(1500, 900, False), (800, 600, False), (390, 844, True)])
def test_the_enlarged_view_is_as_large_as_the_window(browser, width, height, phone):
    browser.screen(width, height, phone)
    browser.js('document.querySelector(".panel").click()')
    # Without the page's scroll bar, where there is one.
    visible = browser.js('document.documentElement.clientWidth')
    for selector in ('#viewer', '#close', '#next', '#stage .photo'):
        box = browser.box(selector)
        assert box['x'] >= 0 and box['x'] + box['width'] <= visible, selector
        assert box['y'] >= 0 and box['y'] + box['height'] <= height, selector
    assert browser.box('#viewer')['width'] == visible and browser.box('#viewer')['height'] == height


@pytest.mark.parametrize('width', [320, 390, 734])
def test_nothing_is_cut_on_a_phone(browser, width):
    browser.screen(width, 844, phone=True)
    cut = json.loads(browser.js('''JSON.stringify([...document.querySelectorAll('.figures *')].filter(element => {
        const row = element.closest('tr');
        // Text that does not wrap makes no box wider, only what it could be scrolled to.
        return row && (element.getBoundingClientRect().right > row.getBoundingClientRect().right + 0.5
                       || element.clientWidth && element.scrollWidth > element.clientWidth);
    }).map(element => element.outerHTML))'''))
    assert cut == []
    assert browser.js('document.querySelector(".figures").scrollWidth <= document.documentElement.clientWidth')
    assert browser.js('document.documentElement.scrollWidth') <= width
