# SPDX-License-Identifier: GPL-3.0-or-later
"""Which headers cross a hop. Pure."""

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

# RFC 9110, section 7.6.1: meant for one connection alone.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate te trailer transfer-encoding upgrade".split()
)
# A client's credentials, and whose they are, are for the daemon it asked, never for the next one.
CREDENTIALS = frozenset(
    b"authorization proxy-authorization x-api-key api-key x-goog-api-key cookie openai-organization openai-project".split()
)
# Made anew on each hop. Compressed answers could not be read for usage, so none is asked for.
_OWN_REQUEST = frozenset(b"host content-length expect accept-encoding x-request-id".split())
_OWN_ANSWER = frozenset(b"content-length date server set-cookie x-request-id request-id".split())
# What gateway and neurons say to each other is nobody else's business.
OURS = b"x-cortex-"
# Says how the client wants to be spoken to; the next hop is asked in OpenAI's dialect, and must answer in it.
_SPEECH = b"anthropic-"


def to_upstream(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """A client's headers that go on to the upstream. Names are lower case, as ASGI has them."""
    return [
        (name, value)
        for name, value in headers
        if name not in HOP_BY_HOP
        and name not in CREDENTIALS
        and name not in _OWN_REQUEST
        and not name.startswith((OURS, _SPEECH))
    ]


def to_client(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """An upstream's headers that go on to the client, with names in lower case."""
    lowered = ((name.lower(), value) for name, value in headers)
    return [
        (name, value)
        for name, value in lowered
        if name not in HOP_BY_HOP and name not in _OWN_ANSWER and not name.startswith(OURS)
    ]


def find(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    """The first value of a header, whatever the case of its name; None: not there."""
    return next((value for name, value in headers if name.lower() == wanted), None)


def read_retry_after(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Seconds after which they allow to ask again; None: they do not, or name a date, which no daemon of ours does."""
    value = find(headers, b"retry-after") or b""
    return float(value) if value.isdigit() else None


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether they say that the body is Server-Sent Events."""
    return (find(headers, b"content-type") or b"").lower().startswith(b"text/event-stream")
