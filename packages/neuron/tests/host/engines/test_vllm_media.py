# SPDX-License-Identifier: GPL-3.0-or-later
"""Which media a request carries, and which it may."""

from typing import Any

import pytest

from cortex_core.errors import InvalidRequestBodyError
from neuron.host.engines.vllm_media import check_urls, has_image

DATA = "data:image/png;base64,AAAA"


def said(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": url}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"messages": "x"}, False),
        ({"messages": [{"content": "x"}, "y", {"content": ["z"]}]}, False),
        (said({"type": "text", "text": "x"}), False),
        (said({"type": "text", "text": "x", "image_url": None}), False),
        (said({"type": ["image_url"]}, {"type": {"a": 1}}, {"type": None}), False),
        (said({"type": "image_url"}), True),
        (said({"image_url": DATA}), True),
        ({"input": [{"content": [{"type": "input_image"}]}]}, True),
        ({"input": [{"type": "function_call_output", "output": [{"type": "input_image"}]}]}, True),
        ({"documents": {"content": [image({"url": DATA})]}}, True),
        (said({"type": "video_url", "video_url": {"url": "http://10.0.0.1/x"}}), True),
        (said({"video_url": DATA}), True),
        (said({"type": "text", "text": "x", "video_url": None}), False),
        (said({"type": "audio_url", "audio_url": {"url": DATA}}), False),
        ({"input": "x", "tools": [{"type": "image_url"}]}, False),
    ],
)
def test_an_image_is_seen_wherever_it_stands(fields: dict[str, Any], expected: bool) -> None:
    assert has_image(fields) is expected


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        (DATA, []),
        ("DATA:image/png;base64,AAAA", []),
        ({"url": DATA}, []),
        ({"url": 3}, []),
        (None, []),
        ("", []),
        ("https://example.com/a.png", ["example.com"]),
        ("HTTP://user@Example.com:8080/a.png", ["other.org", "example.com"]),
    ],
)
def test_media_that_may_be_read_is_passed(url: Any, allowed: list[str]) -> None:
    check_urls(said(image(url)), allowed)


@pytest.mark.parametrize(
    ("url", "allowed", "says"),
    [
        ("http://10.0.0.1/x", [], "as a `data:` URI only"),
        ("https://example.com/x", [], "allowed_media_domains"),
        ("https://example.com.evil.org/x", ["example.com"], "fetched from example.com only"),
        ("https://example.com@evil.org/x", ["example.com"], "fetched from example.com only"),
        ("http://[::1/x", ["example.com"], "fetched from example.com only"),
        ("file:///etc/passwd", ["example.com"], "and not by `file:`"),
        ("ftp://example.com/x", ["example.com"], "and not by `ftp:`"),
        ("/etc/passwd", [], "and not by `/etc/passwd:`"),
    ],
)
@pytest.mark.parametrize("kind", ["image_url", "video_url", "audio_url"])
def test_nothing_is_fetched_that_is_not_allowed(
    kind: str, url: str, allowed: list[str], says: str
) -> None:
    for value in (url, {"url": url}):
        with pytest.raises(InvalidRequestBodyError, match=says) as raised:
            check_urls(said({"type": kind, kind: value}), allowed)
        assert raised.value.param == kind


def test_deep_nesting_is_looked_through() -> None:
    deep: Any = image("file:///x")
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidRequestBodyError):
        check_urls({"input": deep}, [])
