# SPDX-License-Identifier: GPL-3.0-or-later
"""How is something asked that may never answer? In a thread that nobody waits for, the end of the process included."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def ask_apart(question: Callable[[], T]) -> asyncio.Future[T]:
    """Its answer, or what it raises, once that comes.

    Threads of asyncio's pool are joined when the loop ends, and again when the interpreter does.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(answer: T | None, error: Exception | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(answer)  # type: ignore[arg-type]  # None only where T has it

    def ask() -> None:
        answer, error = None, None
        try:
            answer = question()
        except Exception as raised:  # noqa: BLE001 - it is who waits that is told
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, answer, error)

    threading.Thread(target=ask, name="apart", daemon=True).start()
    return future
