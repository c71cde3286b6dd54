"""A real server on a free port, spoken to with plain HTTP."""
import http.client
import json
import re
import threading

import pytest

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.review.picks import read_picks
from sa2va_dpo.review.server import serve_picks


class Client:
    """A browser without a screen: opens the printed address, then asks with the cookie."""

    def __init__(self, address):
        self.host, self.port, self.token = re.fullmatch(r'http://([^:/]+):(\d+)/\?token=(\S+)', address).groups()
        self.cookie = self.ask('GET', f'/?token={self.token}')[1]['set-cookie'].split(';')[0]

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection(self.host, int(self.port), timeout=20)
        own = {
            'Cookie': getattr(self, 'cookie', ''),
            'Origin': f'http://{self.host}:{self.port}',
            'Content-Type': 'application/json',
        }
        connection.request(method, path, body=body if body is None or isinstance(body, bytes) else json.dumps(body),
                           headers={**own, **headers})
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found


@pytest.fixture
def serving(pick_root, capsys):
    """Starts ``serve_picks`` in a thread: (client, thread, what it returned)."""
    threads = []

    def start(**settings):
        returned = []
        thread = threading.Thread(daemon=True, target=lambda: returned.append(
            serve_picks(pick_root, '医生1', '127.0.0.1', 0, exit_when_done=True, **settings)))
        thread.start()
        threads.append(thread)
        printed = ''
        for _ in range(200):
            printed += capsys.readouterr().out
            found = re.search(r'http://\S+', printed)
            if found:
                return Client(found[0]), thread, returned
            thread.join(0.05)
        raise AssertionError(printed)

    return start


def test_the_job_waits_for_the_last_decision(serving, pick_root):
    client, thread, returned = serving()
    status, headers, content = client.ask('GET', '/api/set')
    items = json.loads(content)['items']
    assert (
        status == 200 and len(items) == 3 and headers['x-content-type-options'] == 'nosniff' and 'server' not in headers
    )
    for number, item in enumerate(items, 1):
        status, _, content = client.ask('POST', '/api/decide', dict(key=item['key'], pick=0, seconds=1))
        assert (status, json.loads(content)['done']) == (200, number == 3)
        assert thread.is_alive()
        if number < 3:
            client.ask('POST', '/api/finish', {})  # too early: nothing happens
    client.ask('POST', '/api/finish', {})
    thread.join(15)
    assert returned == [True] and len(read_picks(pick_root, '医生1').agreed) == 3
    # Once more: there is nothing to wait for.
    assert serve_picks(pick_root, '医生1', '127.0.0.1', 0, exit_when_done=True) is True


def test_a_budget_ends_it_too(serving, pick_root):
    client, thread, returned = serving(clicks=1)
    first, second, _ = json.loads(client.ask('GET', '/api/set')[2])['items']
    assert json.loads(client.ask('POST', '/api/decide', dict(key=first['key'], pick='none'))[2])['done']
    assert client.ask('POST', '/api/decide', dict(key=second['key'], pick=0))[0] == 409
    client.ask('POST', '/api/finish', {})
    thread.join(15)
    assert returned == [True] and len(read_picks(pick_root).agreed) == 1


def test_requests_that_are_not_the_pages(serving, pick_root):
    client, thread, _ = serving(clicks=1)
    key = json.loads(client.ask('GET', '/api/set')[2])['items'][0]['key']
    journal = next((pick_root / 'review').iterdir())
    before = journal.read_bytes()
    decision = dict(key=key, pick=0)
    refused = [
        (403, client.ask('POST', '/api/decide', decision, Host='evil.example')),
        (403, client.ask('POST', '/api/decide', decision, Host=f'evil.example:{client.port}')),
        (403, client.ask('POST', '/api/decide', decision, Origin='http://evil.example')),
        (403, client.ask('POST', '/api/decide', decision, Origin=f'http://localhost:{int(client.port) + 1}')),
        (403, client.ask('POST', '/api/decide', decision, Cookie='')),
        (415, client.ask('POST', '/api/decide', decision, **{'Content-Type': 'text/plain'})),
        (403, client.ask('GET', f'/?token={client.token}', Cookie='')),
        (403, client.ask('GET', '/picture/' + key + '/image', Cookie='')),
        (400, client.ask('POST', '/api/decide', b'[]')),
        (400, client.ask('POST', '/api/decide', b'\xff{')),
        (400, client.ask('POST', '/api/decide', b'[' * 100000)),
        (413, client.ask('POST', '/api/decide', b' ' * (1 << 21))),
        (405, client.ask('GET', '/api/decide')),
        (405, client.ask('POST', '/api/set', {})),
        (405, client.ask('PUT', '/', b'x')),
        (404, client.ask('POST', '/upload', {})),
        (404, client.ask('POST', '/api/note', {})),
        (404, client.ask('GET', '/docs')),
        (404, client.ask('GET', '/openapi.json')),
        (404, client.ask('GET', '/favicon.ico')),
        (404, client.ask('GET', '/asset/page.html')),
    ]
    assert [found[0] for _, found in refused] == [status for status, _ in refused]
    for path in (
        '/asset/../review.css',
        '/asset/..%2f..%2f..%2fsetup.py',
        '/asset/%2e%2e/x',
        f'/picture/{key}/..%2f..%2fcandidates.json',
        f'/picture/{key}//etc/passwd',
        f'/picture/..%2f{key}/image',
        f'/picture/{key}/image%00',
        '//etc/passwd',
        '/./',
        '/asset/',
        '/api/item/..%2f..',
        f'/api/item/{key}/..',
        f'/picture/{key}/image/',
    ):
        assert client.ask('GET', path)[0] == 404, path
    assert journal.read_bytes() == before
    assert client.ask('GET', f'/picture/{key}/image')[1]['content-type'] == 'image/png'
    client.ask('POST', '/api/decide', decision), client.ask('POST', '/api/finish', {})
    thread.join(15)
    assert not thread.is_alive()


def test_a_disk_that_is_full_is_said_and_the_page_goes_on(serving, pick_root, monkeypatch):
    client, thread, _ = serving(clicks=1)
    key = json.loads(client.ask('GET', '/api/set')[2])['items'][0]['key']
    import os

    real = os.fsync

    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    status, _, content = client.ask('POST', '/api/decide', dict(key=key, pick=0))
    assert status == 507 and 'No space left on device' in json.loads(content)['error']
    monkeypatch.setattr(os, 'fsync', real)
    assert client.ask('POST', '/api/decide', dict(key=key, pick=0))[0] == 200
    client.ask('POST', '/api/finish', {})
    thread.join(15)
    assert len(read_picks(pick_root).agreed) == 1


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(port=70000), '--port 70000'),
        (dict(host='no such host'), 'cannot be listened on'),
        (dict(clicks=0), '--clicks 0'),
    ],
)
def test_bad_settings(pick_root, settings, words):
    with pytest.raises(InputError, match=words):
        serve_picks(pick_root, 'eye', **{'host': '127.0.0.1', 'port': 0, **settings})
