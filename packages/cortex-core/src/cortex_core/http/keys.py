# SPDX-License-Identifier: GPL-3.0-or-later
"""Does a caller show the right key, and who is it? Pure."""

import hmac
import re
from collections.abc import Iterable
from hashlib import sha256

from cortex_core.http import headers

# How a setting begins that holds a key's digest, and not the key.
HASHED = "sha256:"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_VISIBLE = re.compile(r"[!-~]+")
_BEARER = b"bearer "


def check_key(setting: str, text: str, *, may_be_hashed: bool = True) -> None:
    """Refuse what no caller could ever show. Never repeats it.

    Args:
        setting: its name, for the message.
        text: the key, or `sha256:` and its digest in hexadecimal.
        may_be_hashed: false where the key itself is needed, to be shown.

    Raises:
        ValueError: the operator's fault.
    """
    if not _VISIBLE.fullmatch(text):
        raise ValueError(
            f"`{setting}` is empty, or has spaces or other characters that no header can hold; leave it out, or take "
            "visible ASCII"
        )
    if text.startswith(HASHED) and not (may_be_hashed and _DIGEST.fullmatch(text)):
        what = "needs 64 hexadecimal digits" if may_be_hashed else "is not taken here"
        raise ValueError(
            f"`{setting}` begins with '{HASHED}', which {what}; {_advice(may_be_hashed)}"
        )


def _advice(may_be_hashed: bool) -> str:
    return "`printf %s KEY | sha256sum` tells them" if may_be_hashed else "write the key itself"


class Key:
    """A key that callers must show. Only its digest is kept.

    Digests are compared, and in constant time: how long that takes tells neither how much of a guess is right nor
    how long the key is.
    """

    def __init__(self, text: str) -> None:
        is_hashed = text.startswith(HASHED)
        self._digest = text if is_hashed else HASHED + sha256(text.encode()).hexdigest()

    def is_shown(self, fields: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request's headers hold it, as `Authorization: Bearer KEY` or `x-api-key: KEY`."""
        shown = [_bearer(fields), headers.find(fields, b"x-api-key")]
        return any(self._is(key) for key in shown if key is not None)

    def _is(self, key: bytes) -> bool:
        return hmac.compare_digest(HASHED + sha256(key).hexdigest(), self._digest)


def name_principal(fields: Iterable[tuple[bytes, bytes]], address: str | None) -> str:
    """On whose behalf a request comes: one word that is the same for each of theirs, and no key.

    Args:
        fields: the request's headers. Who shows a key goes by it, whoever they share their address with.
        address: that it came from; None: not known.
    """
    key = _bearer(fields) or headers.find(fields, b"x-api-key")
    if key:
        return "key-" + sha256(key).hexdigest()[:16]
    return address or "anonymous"


def _bearer(fields: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    value = headers.find(fields, b"authorization")
    if value is None or not value.lower().startswith(_BEARER):
        return None
    return value[len(_BEARER) :].strip()
