# SPDX-License-Identifier: GPL-3.0-or-later
"""An ASGI application on a socket, until it is told to stop. The only importer of hypercorn."""

import asyncio
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import hypercorn.asyncio
import hypercorn.config

from cortex_core.errors import OperatorError
from cortex_core.http.exchange import Receive, Scope, Send

AsgiApp = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

# With the default of 100 a burst of 800 connections meets SYN retries: TTFT p50 1 s instead of 0.08 s.
BACKLOG = 4096
# Longer than our client keeps an idle connection (`client.KEEP_IDLE_S`).
KEEP_ALIVE_S = 75
MAX_HEADER_BYTES = 64 * 1024
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
    config = hypercorn.config.Config()
    # hypercorn takes the descriptor over and closes it.
    config.bind = [f"fd://{os.dup(sock.fileno())}"]
    config.backlog = BACKLOG
    config.errorlog = logging.getLogger("hypercorn.error")
    config.graceful_timeout = grace_s
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    config.include_server_header = False
    config.keep_alive_max_requests = 10**9
    config.keep_alive_timeout = KEEP_ALIVE_S
    sock.close()
    await hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]  # its own ASGI types


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
