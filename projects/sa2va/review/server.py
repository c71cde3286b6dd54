"""Serve a page until it is interrupted or everything is decided."""
from __future__ import annotations

import ipaddress
import math
import os
import socket
import threading
import time

from sa2va_dpo.common import console
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.optional import extra

from .candidates import read_candidates
from .journal import Journal
from .pairs import ReviewSet
from .pick_journal import PickJournal

_PATIENCE_S = 60.0   # a page that is done and silent for so long was closed
_REPRINT_S = 2.0     # not every request with a used address prints a new one
_LONGEST_ANSWER_S = 5


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; warns where other machines can reach it. Port 0 takes a free one.

    Raises:
        InputError: ``host:port`` cannot be listened on.
    """
    if not 0 <= port <= 65535:
        raise InputError(f'--port {port}: must be from 0 to 65535; 0 takes a free one')
    listener = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host or '127.0.0.1', port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        raise InputError(f'--host {host} --port {port}: cannot be listened on '
                         f'({getattr(error, "strerror", None) or error}): choose another --port or --host') from None
    if not ipaddress.ip_address(address[0].split('%')[0]).is_loopback:
        print(f'warning: --host {host}: other machines can reach the page, and what travels is not encrypted: '
              'use it in a network that you trust', file=console.err())
    return listener


def serve_pairs(
    review: ReviewSet, reviewer: str, host: str = '127.0.0.1', port: int = 7860, lang: str | None = None
) -> None:
    """Serve the page on which ``reviewer`` decides on pairs, until interrupted.

    Every decision is on disk already, so there is nothing to save at the end.

    Raises:
        InputError: the address cannot be listened on, or the journal cannot be opened (see ``Journal``).
    """
    from .sessions import PairSession

    with listen(host, port) as listener, Journal(review, reviewer) as journal:
        _serve(
            PairSession(review, journal),
            listener,
            host,
            lang,
            f'{len(review.records)} pairs, {len(journal.decisions)} seen by {journal.reviewer}; journal {journal.path}',
        )


def serve_picks(
    root: str | os.PathLike,
    reviewer: str,
    host: str = '127.0.0.1',
    port: int = 7860,
    clicks: int | None = None,
    exit_when_done: bool = False,
    lang: str | None = None,
) -> bool:
    """Serve the page on which ``reviewer`` picks the best candidates of a data root.

    Args:
        clicks: images to be decided, those decided before included; None: all.
        exit_when_done: return once everything is decided (at once, if it is), else serve until interrupted.

    Returns:
        Whether everything, or the budget, is decided.

    Raises:
        InputError: bad candidates, a bad journal or one that is open elsewhere, or an address that cannot be listened
            on.
        KeyboardInterrupt: Ctrl-C; everything decided so far is on disk.
    """
    from .sessions import PickSession

    if clicks is not None and clicks < 1:
        raise InputError(f'--clicks {clicks}: must be at least 1')
    candidates = read_candidates(root)
    with listen(host, port) as listener, PickJournal(candidates, reviewer) as journal:
        session = PickSession(candidates, journal, clicks, closes=exit_when_done)
        if not (exit_when_done and session.done):
            budget = '' if clicks is None else f', {clicks} wanted'
            _serve(
                session,
                listener,
                host,
                lang,
                f'{len(session.order)} images to pick from, {session.decided} decided by '
                f'{journal.reviewer}{budget}; journal {journal.path}',
            )
        return session.done


def _serve(session, listener: socket.socket, host: str, lang: str | None, summary: str) -> None:
    with extra('review', 'the review page'):
        import uvicorn

        from .app import Life, build

    from .gate import Gate, Keys, hosts_of, lan_address

    port = listener.getsockname()[1]
    everywhere = ipaddress.ip_address(listener.getsockname()[0].split('%')[0]).is_unspecified
    shown = lan_address() if everywhere else host or '127.0.0.1'
    shown = f'[{shown}]' if ':' in shown and not shown.startswith('[') else shown
    keys, life, printed = Keys(), Life(), [-math.inf]

    def announce() -> None:
        console.say(f'http://{shown}:{port}/?token={keys.token}')

    def announce_again() -> None:
        if time.monotonic() - printed[0] > _REPRINT_S:
            printed[0] = time.monotonic()
            announce()

    gate = Gate(build(session, lang, life), hosts_of(host or '127.0.0.1', port), port, keys, announce_again)
    server = uvicorn.Server(uvicorn.Config(
        gate, http='h11', ws='none', lifespan='off', loop='asyncio', log_config=None, access_log=False,
        log_level='error', server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=_LONGEST_ANSWER_S, limit_concurrency=128))
    thread = threading.Thread(target=server.run, kwargs=dict(sockets=[listener]), daemon=True)
    console.say(f'{summary}; Ctrl-C ends. Open this address (it works once):')
    thread.start()
    announce()
    try:
        while thread.is_alive():
            if life.finished.wait(0.2) or session.closes and session.done and life.idle > _PATIENCE_S:
                break
    finally:
        server.should_exit = True
        thread.join(2 * _LONGEST_ANSWER_S)
