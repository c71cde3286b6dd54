"""Serve the review page until it is interrupted."""
from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
import threading

from sa2va_dpo.common.errors import InputError
from .journal import Journal
from .pairs import ReviewSet


def check_address(host: str, port: int) -> None:
    """Raises InputError unless ``host:port`` can be listened on; warns where other machines can reach it."""
    if not 1 <= port <= 65535:
        raise InputError(f'--port {port}: must be from 1 to 65535')
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except (OSError, UnicodeError) as error:
        raise InputError(f'--host {host} --port {port}: cannot be listened on '
                         f'({getattr(error, "strerror", None) or error}): choose another --port or --host') from None
    if not ipaddress.ip_address(address[0].split('%')[0]).is_loopback:
        print(f'warning: --host {host}: everybody who can reach this machine can see the images and decide', file=sys.stderr)


def serve(review: ReviewSet, journal: Journal, host: str, port: int) -> None:
    """Serve until interrupted. Every decision is on disk already, so there is nothing to save at the end."""
    # Gradio asks its own address whether it is up; that must not go through a proxy.
    for name in ('no_proxy', 'NO_PROXY'):
        os.environ[name] = ','.join(filter(None, (os.environ.get(name), '127.0.0.1,localhost', host)))
    from .page import Pages, build

    page, looks = build(Pages(review, journal))
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port, share=False, inbrowser=False, quiet=True, prevent_thread_lock=True,
            ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False, footer_links=[], allowed_paths=[],
            blocked_paths=[str(review.root.resolve())], **looks)
    except OSError as error:  # somebody took the port since it was looked at
        raise InputError(f'--port {port}: {error}: choose another --port') from None
    print(f'{len(review.records)} pairs, {len(journal.decisions)} seen by {journal.reviewer}: {address} '
          f'(journal {journal.path}; Ctrl-C ends)', flush=True)
    # A process that a script put into the background ignores SIGINT unless it asks for it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        threading.Event().wait()
    finally:
        page.close()
