# SPDX-License-Identifier: GPL-3.0-or-later
"""The outermost ASGI application: request id, limits, errors in their envelopes, drain, the one log line.

Hot routes speak to an Exchange directly; everything else goes to Starlette's router. Nothing wraps
`send` on a hot route: that would be paid for every chunk.
"""

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route, Router

from cortex_core import logs, wire
from cortex_core.errors import (
    CortexError,
    InternalError,
    MethodNotAllowedError,
    RequestTooLargeError,
    RouteNotFoundError,
    ShuttingDownError,
    UnsupportedMediaTypeError,
    WebSocketRefusedError,
    write_openai,
)
from cortex_core.http.exchange import (
    BODY_IDLE_S,
    MIB,
    ClientGoneError,
    Exchange,
    Message,
    Receive,
    Scope,
    Send,
)

log = logs.get(__name__)

Handler = Callable[[Exchange, bytes], Awaitable[None]]
OnEnd = Callable[[Exchange, CortexError | None], None]
Admit = Callable[[Exchange], CortexError | None]

_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
# Bodies that are surely JSON by their declaration, or not declared at all (curl -d says it is a form).
_JSON_TYPES = (b"application/json", b"application/x-www-form-urlencoded", b"text/plain")
_PLAIN = b"identity"


class Front:
    """Serves hot routes and Starlette routes as one; counts what is in flight.

    Args:
        daemon: `gateway` or `neuron`, for messages.
        hot: path to handler, all of them POST with a JSON body.
        routes: the rest.
        max_body_mb: MiB a request body may have.
        body_idle_s: seconds that may pass without more of it.
        on_end: told once of each hot request, with the error it was refused by, or None.
        admit: asked of each request, by its path and headers, before anything else; an error is the answer.
    """

    def __init__(
        self,
        *,
        daemon: str,
        hot: Mapping[str, Handler],
        routes: list[BaseRoute],
        max_body_mb: int = 64,
        body_idle_s: float = BODY_IDLE_S,
        on_end: OnEnd | None = None,
        admit: Admit | None = None,
    ) -> None:
        self._daemon = daemon
        self._hot = dict(hot)
        self._routes = routes
        self._rest = Router(routes, default=_no_route)
        self._limit_bytes = max_body_mb * MIB
        self._body_idle_s = body_idle_s
        self._on_end = on_end
        self._admit = admit
        self._closing = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._serve(Exchange(scope, receive, send, _request_id(scope)), receive)
        else:  # a WebSocket
            await _refuse_handshake(scope, receive, send)

    @property
    def in_flight(self) -> int:
        """Hot requests being served now."""
        return self._in_flight

    @property
    def closing(self) -> asyncio.Event:
        """Set from when new work is refused; those who wait for something should give up."""
        return self._closing

    def close(self) -> None:
        """Refuse new work from now on."""
        self._closing.set()

    async def drained(self, within_s: float) -> bool:
        """Wait until nothing is in flight; False: `within_s` was not enough."""
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _serve(self, exchange: Exchange, receive: Receive) -> None:
        handler = self._hot.get(exchange.path)
        if handler is None:
            await self._guard(exchange, self._serve_rest(exchange, receive))
            return
        began_s = time.monotonic()
        self._in_flight += 1
        self._idle.clear()
        error: CortexError | None = None
        try:
            error = await self._guard(exchange, self._serve_hot(exchange, handler))
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()
            if self._on_end:
                self._on_end(exchange, error)
            _log_end(exchange, error, time.monotonic() - began_s)

    async def _guard(self, exchange: Exchange, work: Awaitable[None]) -> CortexError | None:
        """Do the work; whatever it raises becomes an answer. Returns the error that it was refused by."""
        try:
            await work
        except ClientGoneError:
            return None
        except CortexError as error:
            return await _refuse(exchange, error)
        except HTTPException as error:
            return await _refuse(exchange, self._routing_error(exchange, error))
        except Exception:  # the outermost layer: a fault of ours becomes a 500 and a traceback
            log.exception("unhandled fault", request_id=exchange.request_id, path=exchange.path)
            fault = InternalError(daemon=self._daemon, request_id=exchange.request_id)
            return await _refuse(exchange, fault)
        return None

    async def _serve_rest(self, exchange: Exchange, receive: Receive) -> None:
        # Read to its end whatever the route: a server with a body that nobody takes cannot close the connection.
        unread = [await self._read_body(exchange)]
        exchange.scope["app"] = (
            self  # makes the router raise its 404 and 405 instead of answering them
        )

        async def receiving() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await receive()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                await exchange.start(message["status"], message.get("headers", []))
            elif message.get("more_body"):
                await exchange.write(message.get("body", b""))
            else:
                await exchange.end(message.get("body", b""))

        await self._rest(exchange.scope, receiving, sending)

    async def _read_body(self, exchange: Exchange) -> bytes:
        """Raises CortexError: it is not admitted, and then nothing of the body was kept; or as `Exchange.read_body`."""
        refusal = self._admit(exchange) if self._admit else None
        if refusal is None:
            return await exchange.read_body(self._limit_bytes, self._body_idle_s)
        with contextlib.suppress(RequestTooLargeError):
            await exchange.read_body(0, self._body_idle_s)
        raise refusal

    def _routing_error(self, exchange: Exchange, error: HTTPException) -> CortexError:
        method, path = exchange.method, exchange.path
        if error.status_code == 405:
            # Not the router's own list: that names the methods of one route where several share a path.
            return MethodNotAllowedError(method=method, path=path, allowed=self._allowed(path))
        return RouteNotFoundError(method=method, path=path)

    def _allowed(self, path: str) -> str:
        methods: set[str] = set()
        for route in self._routes:
            if isinstance(route, Route) and route.path_regex.match(path):
                methods |= route.methods or set()
        return ", ".join(sorted(methods))

    async def _serve_hot(self, exchange: Exchange, handler: Handler) -> None:
        body = await self._read_body(exchange)
        if exchange.method != "POST":
            raise MethodNotAllowedError(method=exchange.method, path=exchange.path, allowed="POST")
        if self._closing.is_set():
            raise ShuttingDownError(daemon=self._daemon)
        _check_content(exchange)
        await exchange.while_here(handler(exchange, body))


async def _refuse_handshake(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    error = WebSocketRefusedError(path=scope["path"])
    fields = [
        (b"content-type", b"application/json"),
        (wire.REQUEST_ID.encode(), _request_id(scope).encode()),
    ]
    head = {"type": "websocket.http.response.start", "status": error.status, "headers": fields}
    await send(head)
    await send({"type": "websocket.http.response.body", "body": write_openai(error)})


def _check_content(exchange: Exchange) -> None:
    declared = exchange.header(b"content-type")
    encoding = exchange.header(b"content-encoding") or _PLAIN
    # Compressed it would be malformed as JSON, which tells nobody why.
    if encoding.lower() != _PLAIN:
        told = b"%b, with Content-Encoding: %b" % (declared or _JSON_TYPES[0], encoding)
        raise UnsupportedMediaTypeError(content_type=told.decode("latin-1"))
    if declared and not declared.split(b";")[0].strip().lower().startswith(_JSON_TYPES):
        raise UnsupportedMediaTypeError(content_type=declared.decode("latin-1"))


async def _refuse(exchange: Exchange, error: CortexError) -> CortexError:
    if exchange.status is None:
        with contextlib.suppress(ClientGoneError):  # then there is nobody to tell
            await exchange.fail(error)
    else:  # the answer has begun: all that is left is to end it visibly broken
        log.warning("answer cut short", request_id=exchange.request_id, error_code=error.code)
    return error


def _log_end(exchange: Exchange, error: CortexError | None, duration_s: float) -> None:
    fields = dict(exchange.notes)
    if error is not None:
        fields["error_code"] = error.code
        fields["reason"] = error.message
    log.info(
        "request",
        request_id=exchange.request_id,
        path=exchange.path,
        status=exchange.status,
        duration_s=round(duration_s, 4),
        bytes_out=exchange.bytes_out,
        client_gone=exchange.client_gone,
        **fields,
    )


def _request_id(scope: Scope) -> str:
    wanted = wire.REQUEST_ID.encode()
    sent = next((value for name, value in scope["headers"] if name == wanted), b"")
    return sent.decode() if _SANE_ID.fullmatch(sent) else f"req_{secrets.token_hex(12)}"


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404)


async def _lifespan(receive: Receive, send: Send) -> None:
    """The daemons start and stop what they own themselves; the server is only told so."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
