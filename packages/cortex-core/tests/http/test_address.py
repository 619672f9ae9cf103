# SPDX-License-Identifier: GPL-3.0-or-later
"""Which endpoints are plain, and where they are."""

import pytest

from cortex_core.http.address import Address, read_address


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("unix:/run/a b", Address(host="/run/a b", port=None, netloc="engine")),
        ("http://10.0.0.5:13131", Address(host="10.0.0.5", port=13131, netloc="10.0.0.5:13131")),
        ("http://gpu-1.lan", Address(host="gpu-1.lan", port=80, netloc="gpu-1.lan")),
        ("http://[::1]:8/v", Address(host="::1", port=8, netloc="[::1]:8", prefix="/v")),
        ("http://a:8/b/c%20", Address(host="a", port=8, netloc="a:8", prefix="/b/c%20")),
        ("https://a", None),
        ("http://user:secret@a", None),
        ("http://a:99999", None),
        ("http://a:", None),
        ("http://\u00e4", None),
        ("http://a/b c", None),
        ("http://", None),
        ("a:8", None),
    ],
)
def test_plain_endpoints_are_spoken_to_and_no_others(
    endpoint: str, address: Address | None
) -> None:
    assert read_address(endpoint) == address
