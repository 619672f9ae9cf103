# SPDX-License-Identifier: GPL-3.0-or-later
"""The answers that come on one connection to an upstream: bytes to status, headers and body.

llhttp parses, and refuses what answers are confused by: two lengths, a length beside chunks, bare line feeds.
Pure.
"""

import httptools

from cortex_core.http.headers import Headers

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256


class MalformedError(Exception):
    """What came is no answer. Its text says why."""


class CutError(Exception):
    """The connection ended before its answer did. Its text says where."""


class _SurplusError(Exception):
    """Stops the parser: what follows is no part of the answer."""


class Answers:
    """Reads one answer after the other; any cut of the bytes reads the same.

    Attributes:
        status: of the final answer; interim ones (1xx) are skipped. 0: its head is not complete yet.
        headers: as they came, in order; trailers are dropped.
        is_whole: its last byte has been read. Also true while nothing is expected.
        is_reusable: the connection may serve another request. Only ever true of a whole answer.
        unread_bytes: of the body, come and not yet taken.
    """

    __slots__ = (
        "_flaw",
        "_fruitless_bytes",
        "_head_bytes",
        "_is_head",
        "_parser",
        "_parts",
        "headers",
        "is_reusable",
        "is_whole",
        "status",
        "unread_bytes",
    )

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.expect("")
        self.is_whole = True

    def expect(self, method: str) -> None:
        """What comes next answers a request of this method."""
        self.status = 0
        self.headers: Headers = []
        self.is_whole = False
        self.is_reusable = False
        self.unread_bytes = 0
        self._is_head = method == "HEAD"
        self._parts: list[bytes] = []
        self._head_bytes = 0
        self._fruitless_bytes = 0
        self._flaw: str | None = None

    @property
    def has_begun(self) -> bool:
        """Whether any byte of the answer has come."""
        return self.status > 0 or self._fruitless_bytes > 0

    def feed(self, data: bytes) -> None:
        """Read what has come. What follows a whole answer is dropped, and makes the connection unfit for another.

        Raises:
            MalformedError: it is no answer; the upstream's fault.
        """
        unread = self.unread_bytes
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.is_whole:
                raise MalformedError(self._flaw or str(error)) from None
            self.is_reusable = False
        if self.unread_bytes == unread:
            self._note_fruitless(len(data))
        else:
            self._fruitless_bytes = 0

    def take(self) -> bytes:
        """The body as far as it has come and was not taken yet."""
        parts = self._parts
        self.unread_bytes = 0
        if len(parts) == 1:
            return parts.pop()
        self._parts = []
        return b"".join(parts)

    def close(self) -> None:
        """The upstream has closed the connection in order. An answer that has no length ends by that.

        Raises:
            CutError: an answer was expected, and is not whole.
        """
        if not self.is_whole and (self.status == 0 or self._has_length()):
            raise CutError(
                "it was closed in the middle of an answer"
                if self.has_begun
                else "it was closed without an answer"
            )
        self.is_whole = True

    def _has_length(self) -> bool:
        """RFC 9112, section 6.3: else the body is what comes until the connection is closed."""
        for name, value in self.headers:
            match name.lower():
                case b"content-length":
                    return True
                case b"transfer-encoding" if value.lower().endswith(b"chunked"):
                    return True
        return False

    def _note_fruitless(self, size_bytes: int) -> None:
        """Bounds heads, trailers and the extensions of chunks, which nobody else counts until they are complete."""
        self._fruitless_bytes += size_bytes
        if self._fruitless_bytes > MAX_HEAD_BYTES and not self.is_whole:
            raise MalformedError(f"its headers are longer than {MAX_HEAD_BYTES // 1024} KiB")

    def on_message_begin(self) -> None:
        """Called by the parser, as all that follow."""
        if self.is_whole:
            raise _SurplusError

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4  # as written
        if self._head_bytes > MAX_HEAD_BYTES:
            self._flaw = f"its headers are longer than {MAX_HEAD_BYTES // 1024} KiB"
            raise MalformedError
        if len(self.headers) >= MAX_HEADERS:
            self._flaw = f"it has more than {MAX_HEADERS} headers"
            raise MalformedError
        if self.status == 0:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 100 or status == 101:  # nobody asked for another protocol
            self._flaw = f"its status is {status}"
            raise MalformedError
        if status < 200:
            self.headers.clear()
            return
        self.status = status
        if self._is_head:  # its length is that of a body which does not come
            self.is_whole = True
            raise _SurplusError

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)
        self.unread_bytes += len(data)

    def on_message_complete(self) -> None:
        if self.status > 0:
            self.is_whole = True
            # Asked later the parser would say no.
            self.is_reusable = self._parser.should_keep_alive()
