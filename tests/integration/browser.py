"""A real headless browser, driven over Chromium's DevTools pipe (nothing to install beside it)."""
import base64
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome', 'microsoft-edge')
_CODES = dict(Escape=27, Enter=13, ArrowLeft=37, ArrowUp=38, ArrowRight=39, ArrowDown=40)


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


class Browser:
    """One tab. Messages go through file descriptors 3 and 4, each ended by a zero byte.

    Attributes:
        requests: addresses asked for.
        problems: errors and warnings of the console, uncaught exceptions, refused contents.
    """

    def __init__(self, executable: str, profile: Path, lang: str = 'en-US') -> None:
        ours_read, theirs_write = os.pipe()
        theirs_read, ours_write = os.pipe()
        # The shell puts the pipes where the browser expects them.
        self._process = subprocess.Popen(
            [
                'bash',
                '-c',
                f'exec 3<&{theirs_read} 4>&{theirs_write}; exec "$@"',
                'browser',
                executable,
                '--headless=new',
                '--remote-debugging-pipe',
                '--no-sandbox',
                '--disable-gpu',
                '--disable-dev-shm-usage',
                '--no-first-run',
                '--disable-background-networking',
                '--no-proxy-server',
                '--window-size=1500,1000',
                f'--lang={lang}',
                f'--accept-lang={lang}',
                f'--user-data-dir={profile}',
                'about:blank',
            ],
            pass_fds=(theirs_read, theirs_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, 'HOME': str(profile)},
            start_new_session=True,
        )
        os.close(theirs_read), os.close(theirs_write)
        self._in, self._out = os.fdopen(ours_read, 'rb', 0), os.fdopen(ours_write, 'wb', 0)
        os.set_blocking(ours_read, False)
        self._buffer, self._next, self._session = b'', 0, None
        self.requests: list[str] = []
        self.problems: list[str] = []
        target = next(t for t in self.call('Target.getTargets')['targetInfos'] if t['type'] == 'page')
        self._session = self.call('Target.attachToTarget', targetId=target['targetId'], flatten=True)['sessionId']
        for domain in ('Page', 'Network', 'Runtime', 'Log'):
            self.call(f'{domain}.enable')
        # The window's size includes bars; the page's does not.
        self.screen(1500, 900)

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
                self._event(answer.get('method'), answer.get('params', {}))
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

    def _event(self, method: str | None, params: dict) -> None:
        if method == 'Network.requestWillBeSent':
            self.requests.append(params['request']['url'])
        elif method == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'warning', 'assert'):
            self.problems.append(' '.join(str(arg.get('value', arg.get('description'))) for arg in params['args']))
        elif method == 'Runtime.exceptionThrown':
            details = params['exceptionDetails']
            self.problems.append(details.get('exception', {}).get('description', details['text']))
        elif method == 'Log.entryAdded' and params['entry']['level'] in ('error', 'warning'):
            self.problems.append(params['entry']['text'] + ' ' + params['entry'].get('url', ''))

    def js(self, expression: str):
        answer = self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in answer, answer
        return answer['result'].get('value')

    def wait(self, expression: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.js(expression):
                return
            time.sleep(0.03)
        raise AssertionError(f'{expression} did not come true; the page says: '
                             + str(self.js('document.body?.innerText'))[:800] + f'; problems: {self.problems}')

    def open(self, address: str) -> None:
        self.call('Page.navigate', url=address)

    def key(self, key: str, modifiers: int = 0, up: bool = True) -> None:
        """Press a key and, unless told otherwise, let it go. ``modifiers``: 2 is Ctrl."""
        text = key if len(key) == 1 and not modifiers else '\r' if key == 'Enter' else ''
        self.call('Input.dispatchKeyEvent', type='keyDown', key=key, text=text, modifiers=modifiers,
                  windowsVirtualKeyCode=_CODES.get(key, 0))
        if up:
            self.release(key)

    def release(self, key: str) -> None:
        self.call('Input.dispatchKeyEvent', type='keyUp', key=key, windowsVirtualKeyCode=_CODES.get(key, 0))

    def type(self, text: str) -> None:
        self.call('Input.insertText', text=text)

    def box(self, selector: str) -> dict:
        """x, y, width and height of an element on the screen."""
        return json.loads(self.js(f'JSON.stringify(document.querySelector({selector!r}).getBoundingClientRect())'))

    def click(self, x: float, y: float, count: int = 1) -> None:
        for kind in ('mousePressed', 'mouseReleased'):
            self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=count)

    def press(self, selector: str) -> None:
        """Click the middle of an element."""
        box = self.box(selector)
        self.click(box['x'] + box['width'] / 2, box['y'] + box['height'] / 2)

    def drag(self, x: float, y: float, dx: float, dy: float) -> None:
        self.call('Input.dispatchMouseEvent', type='mousePressed', x=x, y=y, button='left', clickCount=1)
        for part in (0.3, 1):
            self.call(
                'Input.dispatchMouseEvent',
                type='mouseMoved',
                x=x + dx * part,
                y=y + dy * part,
                button='left',
                buttons=1,
            )
        self.call('Input.dispatchMouseEvent', type='mouseReleased', x=x + dx, y=y + dy, button='left', clickCount=1)

    def wheel(self, x: float, y: float, delta: float) -> None:
        self.call('Input.dispatchMouseEvent', type='mouseWheel', x=x, y=y, deltaX=0, deltaY=delta)

    def touch(self, *frames: list[tuple[float, float]]) -> None:
        """Fingers: one list of points a moment; after the last all are lifted."""
        for number, points in enumerate(frames):
            self.call('Input.dispatchTouchEvent', type='touchMove' if number else 'touchStart',
                      touchPoints=[dict(x=x, y=y, id=k) for k, (x, y) in enumerate(points)])
        self.call('Input.dispatchTouchEvent', type='touchEnd', touchPoints=[])

    def screen(self, width: int, height: int, phone: bool = False) -> None:
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=2 if phone else 1,
                  mobile=phone)
        self.call('Emulation.setTouchEmulationEnabled', enabled=phone, maxTouchPoints=5 if phone else 1)

    def screenshot(self, path: Path) -> None:
        Path(path).write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png')['data']))

    def close(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._in.close(), self._out.close()
