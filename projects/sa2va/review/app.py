"""The routes of the page. Nothing here makes a path of what a request says."""
from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sa2va_dpo.common.errors import InputError

from .sessions import BITS, BadRequest, Budget, PairSession, PickSession

_ASSETS = Path(__file__).resolve().parents[1] / 'assets' / 'review'
_TYPES = {
    '.js': 'text/javascript',
    '.css': 'text/css',
    '.json': 'application/json',
    '.html': 'text/html',
    '.svg': 'image/svg+xml',
}
_LARGEST_BODY = 1 << 20


class Life:
    """When the page was last asked for something, and whether it said that it is finished."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.finished = threading.Event()

    @property
    def idle(self) -> float:
        """Seconds."""
        return time.monotonic() - self.last


def build(session: PairSession | PickSession, lang: str | None, life: Life) -> Starlette:
    """The application behind the gate.

    Args:
        lang: 'en' or 'zh'; None: what the browser prefers.
    """
    # All of them, once: what is not read here cannot be asked for.
    assets = {path.name: path.read_bytes() for path in _ASSETS.iterdir() if path.suffix in _TYPES}

    async def page(request: Request) -> Response:
        return Response(assets['page.html'], media_type='text/html')

    async def asset(request: Request) -> Response:
        name = request.path_params['name']
        if name not in assets or name == 'page.html':
            return _problem(404, 'no such file')
        return Response(assets[name], media_type=_TYPES[Path(name).suffix])

    async def overview(request: Request) -> Response:
        return await _answer(lambda: dict(session.overview(), lang=lang))

    async def item(request: Request) -> Response:
        return await _answer(lambda: session.item(request.path_params['key']))

    async def picture(request: Request) -> Response:
        def make() -> Response:
            content, kind = session.picture(request.path_params['key'], request.path_params['part'])
            return Response(content, media_type=kind, headers={'content-encoding': 'gzip'} if kind == BITS else None)
        return await _answer(make)

    async def decide(request: Request) -> Response:
        return await _posted(request, session.decide)

    async def note(request: Request) -> Response:
        return await _posted(request, session.note)

    async def alive(request: Request) -> Response:
        return JSONResponse({})

    async def finish(request: Request) -> Response:
        if session.done and session.closes:
            life.finished.set()
        return JSONResponse({})

    routes = [
        Route('/', page),
        Route('/asset/{name}', asset),
        Route('/api/set', overview),
        Route('/api/item/{key}', item),
        Route('/picture/{key}/{part}', picture),
        Route('/api/decide', decide, methods=['POST']),
        Route('/api/alive', alive, methods=['POST']),
        Route('/api/finish', finish, methods=['POST']),
    ]
    if isinstance(session, PairSession):
        routes.append(Route('/api/note', note, methods=['POST']))
    app = Starlette(
        routes=routes,
        exception_handlers={
            404: lambda request, error: _problem(404, 'no such page'),
            405: lambda request, error: _problem(405, 'no such method'),
        },
    )
    app.router.redirect_slashes = False
    return _watched(app, life)


def _watched(app: Starlette, life: Life):
    async def watched(scope, receive, send) -> None:
        life.last = time.monotonic()
        await app(scope, receive, send)

    return watched


async def _posted(request: Request, action) -> Response:
    content = b''
    async for part in request.stream():
        content += part
        if len(content) > _LARGEST_BODY:
            return _problem(413, 'too much')
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        return _problem(400, 'not a JSON object')
    return await _answer(lambda: action(body), status=507)


async def _answer(make, status: int = 422) -> Response:
    """What ``make`` returns, as JSON or as it is; ``status`` is the one of an InputError."""
    try:
        found: Any = await run_in_threadpool(make)
    except KeyError:
        return _problem(404, 'no such picture or pair')
    except BadRequest as error:
        return _problem(400, str(error))
    except Budget:
        return _problem(409, 'budget')
    except InputError as error:
        return _problem(status, ' '.join(str(error).split()))
    return found if isinstance(found, Response) else JSONResponse(found)


def _problem(status: int, text: str) -> Response:
    return JSONResponse(dict(error=text.encode('utf-8', 'replace').decode()), status_code=status)
