# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI's own dialects go through byte for byte, but for a model that is called otherwise."""

import pytest

from cortex_core.errors import ClientError
from cortex_core.openai import Asked
from cortex_gateway.dialects import build_dialects
from cortex_gateway.dialects.verbatim import lacks_route

BODY = b'{ "messages" : [{"role":"user","content":"\\u00e9 \xc3\xa9"}], "model":"a", "x": 1.0e3, "stream":true }'
OPENAI = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/score",
    "/v1/rerank",
    "/tokenize",
]


@pytest.mark.parametrize("path", OPENAI)
def test_a_body_is_looked_at_and_not_touched(path: str) -> None:
    dialect = build_dialects()[path]
    asked = dialect.read(BODY)
    assert asked == Asked(model="a", stream=True)
    assert dialect.write(BODY, asked, "a") is BODY
    assert (dialect.path, dialect.upstream_path) == (path, path)


def test_a_renamed_model_is_put_in_and_nothing_else_changes() -> None:
    dialect = build_dialects()["/v1/chat/completions"]
    assert dialect.write(BODY, dialect.read(BODY), "org/b") == (
        b'{"messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}],"model":"org/b","x":1.0e3,"stream":true}'
    )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "malformed_json"),
        (b"", "malformed_json"),
        (b"[]", "invalid_request_body"),
        (b'{"model":3}', "invalid_request_body"),
        (b'{"model":"a","stream":"yes"}', "invalid_request_body"),
        (b'{"messages":[]}', "missing_model_field"),
        (b'{"model":""}', "missing_model_field"),
    ],
)
def test_what_cannot_be_read_is_the_client_s_fault(body: bytes, code: str) -> None:
    for path in OPENAI:
        with pytest.raises(ClientError) as caught:
            build_dialects()[path].read(body)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("status", "body", "lacks"),
    [
        (404, b'{"error":{"code":"route_not_found","message":"There is no route"}}', True),
        (404, b'{"detail":"Not Found"}', True),
        (405, b'{"detail":"Method Not Allowed"}', True),
        (404, b"404 page not found", True),
        (404, b'{"error":{"code":404,"message":"File Not Found","type":"not_found_error"}}', True),
        (501, b"", True),
        (404, b"[]", True),
        (404, b'{"error":{"code":"model_not_found","message":"x"}}', False),
        (404, b'{"error":{"code":404,"param":"model","message":"x"}}', False),
        (404, b'{"error":{"message":"The model `x` does not exist."}}', False),
        (400, b'{"error":{"code":"route_not_found"}}', False),
        (200, b"{}", False),
    ],
)
def test_a_missing_path_is_told_from_a_missing_model(status: int, body: bytes, lacks: bool) -> None:
    assert lacks_route(status, body) is lacks
