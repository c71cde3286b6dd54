"""Who gets past the gate, without a network."""
import asyncio

import pytest

from sa2va_dpo.review.gate import HEADERS, Gate, Keys, hosts_of

PORT = 7860
HOST = f'127.0.0.1:{PORT}'


class Server:
    """A gate with a page behind it that counts its visitors."""

    def __init__(self):
        self.visits, self.announced, self.keys = 0, 0, Keys()
        self.gate = Gate(self._page, hosts_of('127.0.0.1', PORT), PORT, self.keys, self._announce)

    def _announce(self):
        self.announced += 1

    async def _page(self, scope, receive, send):
        self.visits += 1
        await send(dict(type='http.response.start', status=200, headers=[(b'x-frame-options', b'ALLOWALL')]))
        await send(dict(type='http.response.body', body=b'page'))

    def ask(self, path='/', method='GET', query='', headers=(('host', HOST),)):
        """(status, headers, body)"""
        sent = []

        async def send(message):
            sent.append(message)

        scope = dict(type='http', method=method, path=path, query_string=query.encode(),
                     headers=[(name.encode(), value.encode('latin-1')) for name, value in headers])
        asyncio.run(self.gate(scope, None, send))
        found = {}
        for name, value in sent[0]['headers']:
            found.setdefault(name.decode(), []).append(value.decode())
        return sent[0]['status'], found, b''.join(part.get('body', b'') for part in sent[1:])

    def enter(self):
        status, headers, _ = self.ask(query=f'token={self.keys.token}')
        assert status == 200
        return headers['set-cookie'][0].split(';')[0]


@pytest.fixture
def server():
    return Server()


def test_the_token_opens_once_and_its_cookie_is_locked_away(server):
    token = server.keys.token
    status, headers, body = server.ask(query=f'token={token}')
    assert status == 200 and body == b'page'
    cookie, *attributes = headers['set-cookie'][0].split('; ')
    assert set(attributes) == {'Path=/', 'HttpOnly', 'SameSite=Strict'}
    assert cookie.split('=', 1)[1] != token
    assert server.ask(query=f'token={token}')[0] == 403 and server.announced == 1
    assert server.ask(headers=[('host', HOST), ('cookie', cookie)])[0] == 200
    # The browser that has the cookie may come with the old address again, among other sites' cookies.
    assert server.ask(query=f'token={token}', headers=[('host', HOST), ('cookie', f'a=b; {cookie}; c')])[0] == 200
    # The next printed address is another one.
    assert server.keys.token != token and server.ask(query=f'token={server.keys.token}')[0] == 200


@pytest.mark.parametrize('query', ['', 'token=', 'token=x', 'token=%ff%00', 'token=' + 'a' * 5000, 'other=1'])
def test_nobody_else_comes_in(server, query):
    before = server.keys.token
    status, headers, body = server.ask(query=query)
    assert status == 403 and server.visits == 0 and 'set-cookie' not in headers
    # A guess neither uses up the token nor prints anything.
    assert server.keys.token == before and server.announced == 0


@pytest.mark.parametrize('path', ['/api/set', '/picture/a/b', '/asset/main.js', '/api/decide', '//', '/%2e%2e/'])
def test_the_token_opens_the_front_door_only(server, path):
    assert server.ask(path, query=f'token={server.keys.token}')[0] == 403
    assert server.ask(path, headers=[('host', HOST), ('cookie', f'sa2va-review-{PORT}=x')])[0] == 403
    assert server.visits == 0


@pytest.mark.parametrize(
    'host',
    [
        [],
        ['evil.example'],
        ['evil.example:7860'],
        ['127.0.0.1'],
        ['127.0.0.1:7861'],
        ['127.0.0.1.evil.example:7860'],
        [HOST, HOST],
        [HOST, 'evil.example'],
        ['0.0.0.0:7860'],
        ['169.254.0.1:7860'],
        [''],
        ['user@127.0.0.1:7860'],
        ['[::1]:7860'],
    ],
)
def test_another_host_is_refused_also_with_the_cookie(server, host):
    cookie, visits = server.enter(), server.visits
    status, headers, _ = server.ask('/api/set', headers=[*(('host', name) for name in host), ('cookie', cookie)])
    assert status == 403 and server.visits == visits


@pytest.mark.parametrize('host', [HOST, f'localhost:{PORT}', f'LOCALHOST:{PORT}'])
def test_its_own_names_are_taken(server, host):
    cookie = server.enter()
    assert server.ask('/api/set', headers=[('host', host), ('cookie', cookie)])[0] == 200


@pytest.mark.parametrize('origin', [
    'http://evil.example', 'null', 'http://localhost:7861', 'http://127.0.0.1', 'https://127.0.0.1:7860', 'file://',
    'http://localhost:7860.evil.example', ''])
def test_another_origin_is_refused(server, origin):
    cookie, visits = server.enter(), server.visits
    for method in ('GET', 'POST'):
        headers = [('host', HOST), ('cookie', cookie), ('origin', origin), ('content-type', 'application/json')]
        assert server.ask('/api/decide', method, headers=headers)[0] == 403
    assert server.visits == visits


def test_a_decision_needs_an_origin_and_json(server):
    cookie = server.enter()
    base = [('host', HOST), ('cookie', cookie)]
    own = [('origin', f'http://{HOST}')]
    assert server.ask('/api/decide', 'POST', headers=[*base, ('content-type', 'application/json')])[0] == 403
    for kind in (
        'text/plain',
        'application/x-www-form-urlencoded',
        'multipart/form-data; boundary=x',
        'application/jsonx',
    ):
        assert server.ask('/api/decide', 'POST', headers=[*base, *own, ('content-type', kind)])[0] == 415
    assert server.ask('/api/decide', 'POST', headers=[*base, *own])[0] == 415
    assert (
        server.ask('/api/decide', 'POST', headers=[*base, *own, ('content-type', 'application/json; charset=utf-8')])[0]
        == 200
    )


@pytest.mark.parametrize('method', ['PUT', 'DELETE', 'OPTIONS', 'PATCH', 'TRACE', 'CONNECT'])
def test_other_methods_are_off(server, method):
    cookie, visits = server.enter(), server.visits
    assert server.ask('/', method, headers=[('host', HOST), ('cookie', cookie)])[0] == 405 and server.visits == visits


def test_other_sites_may_link_to_the_page_and_nothing_else(server):
    cookie = server.enter()
    base = [('host', HOST), ('cookie', cookie), ('sec-fetch-site', 'cross-site')]
    assert server.ask('/', headers=[*base, ('sec-fetch-dest', 'document')])[0] == 200
    for dest in ('iframe', 'image', 'script', 'empty'):
        assert server.ask('/', headers=[*base, ('sec-fetch-dest', dest)])[0] == 403
    assert server.ask('/picture/a/image', headers=[*base, ('sec-fetch-dest', 'document')])[0] == 403
    assert server.ask('/', headers=[('host', HOST), ('cookie', cookie), ('sec-fetch-site', 'same-site')])[0] == 403


def test_every_answer_carries_the_headers(server):
    cookie = server.enter()
    for headers in ([('host', HOST), ('cookie', cookie)], [('host', HOST)], [('host', 'evil')]):
        found = server.ask(headers=headers)[1]
        assert all(found[name] == [value] for name, value in HEADERS)
    policy = dict(HEADERS)['content-security-policy']
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and 'unsafe' not in policy


def test_only_http_is_spoken(server):
    async def send(message):
        raise AssertionError(message)

    asyncio.run(server.gate(dict(type='websocket', path='/', headers=[]), None, send))
    assert server.visits == 0


def test_names_of_a_server():
    assert hosts_of('127.0.0.1', 1) == {'127.0.0.1:1', 'localhost:1'}
    assert hosts_of('192.168.1.5', 80) == {'192.168.1.5:80', '192.168.1.5'}
    assert '[::1]:5' in hosts_of('::1', 5) and '192.168.1.5:5' not in hosts_of('127.0.0.1', 5)
    everywhere = hosts_of('0.0.0.0', 5)
    assert {'127.0.0.1:5', 'localhost:5'} <= everywhere and all(name.endswith(':5') for name in everywhere)


def test_tokens_and_cookies_are_not_told_by_their_texts():
    keys = Keys()
    cookie, used = keys.redeem(keys.token)
    assert (
        not used
        and keys.knows(cookie)
        and not keys.knows('')
        and not keys.knows('\udcff')
        and not keys.knows(cookie[:-1])
    )
    assert keys.redeem('x') == (None, False)
