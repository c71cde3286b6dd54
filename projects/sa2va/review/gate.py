"""Who may talk to the page: the browser that opened the printed address, at that address, from that page.

A page on 127.0.0.1 is reachable by every local user, and through the browser by every web site: by name (DNS
rebinding), by forms and by frames. Every request therefore passes here first.
"""
from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
import threading
from typing import Callable, Iterable
from urllib.parse import parse_qs

HEADERS = (
    ('content-security-policy', "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
     "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ('x-content-type-options', 'nosniff'), ('x-frame-options', 'DENY'), ('referrer-policy', 'no-referrer'),
    ('cross-origin-opener-policy', 'same-origin'), ('cross-origin-resource-policy', 'same-origin'),
    ('permissions-policy', 'camera=(), microphone=(), geolocation=()'), ('cache-control', 'no-store'))
_METHODS = ('GET', 'HEAD', 'POST')
_USED_KEPT = 64


class Keys:
    """One-time tokens of printed addresses, and the cookies of the browsers that used one. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: list[bytes] = []
        self._cookies: list[bytes] = []
        self._token = secrets.token_urlsafe(24)

    @property
    def token(self) -> str:
        """For the next browser."""
        return self._token

    def redeem(self, token: str) -> tuple[str | None, bool]:
        """(cookie, whether the token was a good one that has been used already). A good token gives a cookie once."""
        digest = _digest(token)
        with self._lock:
            if hmac.compare_digest(digest, _digest(self._token)):
                cookie = secrets.token_urlsafe(32)
                self._cookies.append(_digest(cookie))
                self._used = [*self._used, digest][-_USED_KEPT:]
                self._token = secrets.token_urlsafe(24)
                return cookie, False
            return None, any([hmac.compare_digest(digest, used) for used in self._used])

    def knows(self, cookie: str) -> bool:
        digest = _digest(cookie)
        with self._lock:
            return any([hmac.compare_digest(digest, known) for known in self._cookies])


class Gate:
    """ASGI: lets through what the module's docstring says and adds ``HEADERS`` to every answer.

    Args:
        app: what is behind.
        hosts: values of the Host header that mean this server.
        port: the cookie's name holds it, because browsers do not tell ports apart.
        used_again: called where somebody came with an address that was used before.
    """

    def __init__(
        self, app, hosts: Iterable[str], port: int, keys: Keys, used_again: Callable[[], None] = lambda: None
    ) -> None:
        self.app, self.keys, self.used_again = app, keys, used_again
        self.hosts = frozenset(hosts)
        self.cookie = f'sa2va-review-{port}'

    async def __call__(self, scope, receive, send) -> None:
        if scope['type'] != 'http':
            return
        cookie = None
        problem = self._problem(scope)
        if problem is None:
            problem, cookie = self._identify(scope)

        async def guarded(message) -> None:
            if message['type'] == 'http.response.start':
                own = {name.encode() for name, _ in HEADERS}
                headers = [pair for pair in message.get('headers', ()) if pair[0].lower() not in own]
                headers += [(name.encode(), value.encode()) for name, value in HEADERS]
                if cookie is not None:
                    headers.append(
                        (b'set-cookie', f'{self.cookie}={cookie}; Path=/; HttpOnly; SameSite=Strict'.encode())
                    )
                message = {**message, 'headers': headers}
            await send(message)

        if problem is None:
            await self.app(scope, receive, guarded)
            return
        status, text = problem
        await guarded(
            dict(type='http.response.start', status=status, headers=[(b'content-type', b'text/plain; charset=utf-8')])
        )
        await guarded(
            dict(type='http.response.body', body=b'' if scope['method'] == 'HEAD' else (text + '\n').encode())
        )

    def _problem(self, scope) -> tuple[int, str] | None:
        """What is wrong with a request, whoever sent it."""
        values = _values(scope)
        hosts = values.get('host', [])
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return 403, 'This address is not the one that was printed.'
        if scope['method'] not in _METHODS:
            return 405, 'No such method.'
        origins = values.get('origin', [])
        if any(origin.lower() not in {f'http://{host}' for host in self.hosts} for origin in origins):
            return 403, 'The request comes from another page.'
        if scope['method'] == 'POST':
            if len(origins) != 1:
                return 403, 'The request does not say which page it comes from.'
            if values.get('content-type', [''])[0].split(';')[0].strip().lower() != 'application/json':
                return 415, 'Only JSON is taken.'
        site = values.get('sec-fetch-site', ['none'])[0]
        # A link in a mail or a notebook may open the page itself; nothing else of another site may ask for anything.
        if site not in ('none', 'same-origin') and not (
                scope['path'] == '/' and scope['method'] == 'GET' and values.get('sec-fetch-dest') == ['document']):
            return 403, 'The request comes from another page.'
        return None

    def _identify(self, scope) -> tuple[tuple[int, str] | None, str | None]:
        """(problem or None, cookie to be set or None)."""
        for line in _values(scope).get('cookie', []):
            for part in line.split(';'):
                name, _, value = part.strip().partition('=')
                if name == self.cookie and self.keys.knows(value):
                    return None, None
        if scope['path'] == '/' and scope['method'] == 'GET':
            token = parse_qs(scope.get('query_string', b'').decode('latin-1')).get('token', [''])[-1]
            cookie, used = self.keys.redeem(token)
            if cookie is not None:
                return None, cookie
            if used:
                self.used_again()
                return (403, 'This address has been used already. A new one stands in the terminal.\n'
                             '此地址已被使用过。新地址已显示在终端中。'), None
        return (403, 'Open the address that was printed in the terminal.\n请打开终端中显示的地址。'), None


def hosts_of(host: str, port: int) -> set[str]:
    """Values of the Host header that mean a server which listens on ``host`` (an address or a name).

    A server on this machine only is called by its loopback names; one on a single address by that; one on every
    interface by the machine's names and addresses.
    """
    names = {host}
    try:
        address = ipaddress.ip_address(host.strip('[]').split('%')[0])
    except ValueError:
        address = None
    if host == 'localhost' or (address is not None and (address.is_loopback or address.is_unspecified)):
        names |= {'localhost', '127.0.0.1'}
    if address is not None and address.is_unspecified:
        names |= {socket.gethostname(), lan_address()}
        try:
            names |= {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None)}
        except OSError:
            pass
    if address is not None and address.version == 6:
        names |= {'::1'} if address.is_loopback or address.is_unspecified else set()
    shown = {f'[{name}]' if ':' in name and not name.startswith('[') else name for name in names}
    return {f'{name.lower()}:{port}' for name in shown} | ({name.lower() for name in shown} if port == 80 else set())


def lan_address() -> str:
    """This machine's address towards others (nothing is sent); 127.0.0.1 without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(('192.0.2.1', 9))
            return probe.getsockname()[0]
        except OSError:
            return '127.0.0.1'


def _values(scope) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope['headers']:
        found.setdefault(name.decode('latin-1').lower(), []).append(value.decode('latin-1'))
    return found


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).digest()
