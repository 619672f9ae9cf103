# SPDX-License-Identifier: GPL-3.0-or-later
"""An ASGI application on a socket, until it is told to stop. The only importer of hypercorn."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from pathlib import Path
from typing import Any, cast

import hypercorn.asyncio
import hypercorn.asyncio.run
import hypercorn.config
from hypercorn.asyncio.tcp_server import TCPServer

from cortex_core.errors import OperatorError
from cortex_core.http.exchange import Receive, Scope, Send
from cortex_core.http.inbound import KEEP_ALIVE_S, MAX_HEAD_BYTES, Inbound

AsgiApp = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

# With the default of 100 a burst of 800 connections meets SYN retries: TTFT p50 1 s instead of 0.08 s.
BACKLOG = 4096
# How often connections are looked at for what takes too long there.
SWEEP_S = 5.0
# A connection whose other end is gone without a word is noticed after about two minutes: asked after a minute of
# silence, and then every 15 s, four times. Accepted sockets have what the listening one has.
KEEP_ALIVE_PROBES = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


def bind(address: str) -> socket.socket:
    """A listening socket on `host:port`, `[v6]:port` or `unix:/path`. From here on connections are accepted.

    Raises:
        OperatorError: the address is malformed, in use, not ours, or not allowed.
    """
    if address.startswith("unix:"):
        return _bind_unix(address.removeprefix("unix:"))
    host, port = _split(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _keep_alive(sock)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OperatorError(message=_explain(address, error)) from None
    return sock


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE_PROBES.items():
        if hasattr(socket, name):  # elsewhere than on Linux the system's own times hold
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _bind_unix(path: str) -> socket.socket:
    Path(path).unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OperatorError(message=_explain(f"unix:{path}", error)) from None
    return sock


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise OperatorError(
            message=f"The address '{address}' is not host:port, such as 127.0.0.1:31313."
        )
    return host.strip("[]"), int(port)


def _explain(address: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"The address {address} is in use. Another daemon may be running; stop it, or listen elsewhere."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"The address {address} is not one of this machine."
    if error.errno == errno.EACCES:
        return f"Listening on {address} is not allowed; ports below 1024 need more rights."
    return f"Listening on {address} failed: {error.strerror or error}."


async def serve(
    app: AsgiApp, sock: socket.socket, stop: asyncio.Event, *, grace_s: float = 1.0
) -> None:
    """Serve until `stop` is set, then close: what still runs has `grace_s` seconds before it is cut."""
    config = _Config(app)
    # hypercorn takes the descriptor over and closes it.
    config.bind = [f"fd://{os.dup(sock.fileno())}"]
    config.backlog = BACKLOG
    config.errorlog = logging.getLogger("hypercorn.error")
    config.graceful_timeout = grace_s
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    config.include_server_header = False
    config.keep_alive_max_requests = 10**9
    config.keep_alive_timeout = KEEP_ALIVE_S
    sock.close()
    await hypercorn.asyncio.serve(app, config, shutdown_trigger=lambda: config.sweep(stop))  # type: ignore[arg-type]  # its own ASGI types


class _Config(hypercorn.config.Config):
    """One server's settings, and its connections, which hypercorn hands on to what serves each of them."""

    def __init__(self, app: AsgiApp) -> None:
        self.app = app
        self.connections: set[Inbound] = set()

    def create_sockets(self) -> hypercorn.config.Sockets:
        """As hypercorn makes them, but for this process alone.

        Processes that a daemon starts, on uvloop, would have them too, and keep the port of one that was killed.
        """
        sockets = super().create_sockets()
        for sock in sockets.secure_sockets + sockets.insecure_sockets:
            sock.set_inheritable(False)
        return sockets

    async def sweep(self, stop: asyncio.Event) -> None:
        """End what takes too long, until `stop` is set; then no connection takes another request."""
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_S):
                    await stop.wait()
            for connection in list(self.connections):
                connection.sweep(loop.time())
        for connection in list(self.connections):
            connection.finish()
            # Not left to hypercorn: it waits for all connections before it counts the time.
            loop.call_later(self.graceful_timeout, connection.cut)


class _Served:
    """A connection that hypercorn has accepted: HTTP/1.1 is served by our own protocol, all else by hypercorn's."""

    def __init__(
        self,
        app: Any,
        loop: asyncio.AbstractEventLoop,
        config: _Config,
        context: Any,
        state: Any,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._config = config
        self._reader = reader
        self._transport = cast(asyncio.Transport, writer.transport)
        self._theirs = partial(TCPServer, app, loop, config, context, state)
        self._tls = writer.get_extra_info("ssl_object")
        self._writer = writer

    def __await__(self) -> Generator[Any, None, None]:
        return self._serve().__await__()

    async def _serve(self) -> None:
        if self._tls is not None and self._tls.selected_alpn_protocol() == "h2":
            await self._theirs(self._reader, self._writer)
            return
        connection = Inbound(
            self._config.app, self._transport, "http" if self._tls is None else "https"
        )
        self._transport.set_protocol(connection)
        self._config.connections.add(connection)
        try:
            # What came before it was ours. Nothing is waited for: the reader gets no more.
            self._reader.feed_eof()
            if came := await self._reader.read():
                connection.data_received(came)
            await connection.ended
        except asyncio.CancelledError:
            # It ends here: asyncio's streams take a handler that was cancelled for one that has failed, and say so.
            await connection.stop()
        finally:
            self._config.connections.discard(connection)
        if connection.handed_over is not None:
            await self._hand_over(connection.handed_over)

    async def _hand_over(self, came: bytes) -> None:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        protocol.connection_made(self._transport)
        self._transport.set_protocol(protocol)
        reader.feed_data(came)
        self._transport.resume_reading()
        loop = asyncio.get_running_loop()
        await self._theirs(reader, asyncio.StreamWriter(self._transport, protocol, reader, loop))


# hypercorn has no hook for the protocol of a connection. Its version is held to one minor release for this.
hypercorn.asyncio.run.TCPServer = _Served  # type: ignore[assignment, attr-defined]


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set; a second signal ends the process at once."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a daemon's main coroutine, on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
