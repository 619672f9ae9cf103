# SPDX-License-Identifier: GPL-3.0-or-later
"""Which headers cross a hop."""

from cortex_core.http.headers import find, to_client, to_upstream


def test_credentials_and_what_is_ours_stay_behind() -> None:
    sent = [
        (b"authorization", b"Bearer k"),
        (b"x-api-key", b"k"),
        (b"api-key", b"k"),
        (b"x-goog-api-key", b"k"),
        (b"openai-organization", b"o"),
        (b"openai-project", b"p"),
        (b"cookie", b"c"),
        (b"connection", b"keep-alive"),
        (b"host", b"h"),
        (b"content-length", b"3"),
        (b"x-cortex-usage", b"1"),
        (b"accept-encoding", b"gzip"),
        (b"anthropic-version", b"2026-10-21"),
        (b"anthropic-beta", b"b"),
        (b"traceparent", b"t"),
        (b"x-include-thinking", b"1"),
        (b"content-type", b"application/json"),
    ]
    assert to_upstream(sent) == sent[-3:]


def test_an_answers_headers_go_on_in_lower_case() -> None:
    got = [
        (b"Content-Type", b"text/event-stream"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Date", b"d"),
        (b"Retry-After", b"3"),
    ]
    assert to_client(got) == [(b"content-type", b"text/event-stream"), (b"retry-after", b"3")]


def test_a_header_is_found_whatever_its_case() -> None:
    assert find([(b"Retry-After", b"3")], b"retry-after") == b"3"
    assert find([], b"retry-after") is None
