# SPDX-License-Identifier: GPL-3.0-or-later
from hashlib import sha256

import pytest

from cortex_core.http.headers import Headers
from cortex_core.http.keys import Key, check_key, name_principal

DIGEST = sha256(b"right").hexdigest()


@pytest.mark.parametrize("text", ["right", f"sha256:{DIGEST}"])
@pytest.mark.parametrize(
    ("fields", "is_shown"),
    [
        ([(b"authorization", b"Bearer right")], True),
        ([(b"authorization", b"bearer  right ")], True),
        ([(b"x-api-key", b"right")], True),
        ([(b"authorization", b"Bearer wrong"), (b"x-api-key", b"right")], True),
        ([], False),
        ([(b"authorization", b"right")], False),
        ([(b"authorization", b"Basic right")], False),
        ([(b"authorization", b"Bearer ")], False),
        ([(b"authorization", b"Bearer righ")], False),
        ([(b"authorization", b"Bearer right2")], False),
        ([(b"authorization", b"Bearer \xff")], False),
        ([(b"x-api-key", b"")], False),
        ([(b"x-api-key", DIGEST.encode())], False),
        ([(b"x-api-key", b"sha256:" + DIGEST.encode())], False),
    ],
)
def test_a_key_is_known_in_both_headers_and_never_by_its_digest(
    text: str, fields: Headers, is_shown: bool
) -> None:
    assert Key(text).is_shown(fields) is is_shown


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("hush hush", "has spaces"),
        ("hüsch", "no header can hold"),
        ("sha256:hush", "64 hexadecimal digits"),
        (f"sha256:{DIGEST.upper()}", "64 hexadecimal digits"),
    ],
)
def test_a_key_that_nobody_could_show_is_refused_and_not_repeated(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        check_key("secret", text)
    assert "hush" not in str(caught.value)
    assert "`secret`" in str(caught.value)


def test_a_digest_is_no_use_where_the_key_is_to_be_shown() -> None:
    check_key("secret", f"sha256:{DIGEST}")
    with pytest.raises(ValueError, match="not taken here"):
        check_key("secret", f"sha256:{DIGEST}", may_be_hashed=False)


@pytest.mark.parametrize(
    ("fields", "address", "named"),
    [
        ([(b"authorization", b"Bearer right")], "10.0.0.7", f"key-{DIGEST[:16]}"),
        ([(b"X-Api-Key", b"right")], None, f"key-{DIGEST[:16]}"),
        ([(b"authorization", b"Basic aHVzaA==")], "10.0.0.7", "10.0.0.7"),
        ([(b"authorization", b"Bearer ")], "fe80::1", "fe80::1"),
        ([], None, "anonymous"),
    ],
)
def test_a_principal_goes_by_its_key_or_else_its_address(
    fields: list[tuple[bytes, bytes]], address: str | None, named: str
) -> None:
    assert name_principal(fields, address) == named
