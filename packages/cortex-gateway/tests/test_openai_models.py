# SPDX-License-Identifier: GPL-3.0-or-later
"""What an OpenAI-compatible server lists, as models of the fleet."""

import msgspec
import pytest

from cortex_gateway.openai_models import OpenAIModels, describe, has_lifecycle, read_states


@pytest.mark.parametrize(
    ("entry", "context"),
    [
        (b'{"id":"a/b:7b"}', None),
        (b'{"id":"a/b:7b","object":"model","created":1,"owned_by":"x"}', None),
        (b'{"id":"a/b:7b","max_model_len":4096}', 4096),
        (b'{"id":"a/b:7b","context_length":8192}', 8192),
        (b'{"id":"a/b:7b","meta":{"n_ctx":512,"n_ctx_train":32768}}', 512),
        (b'{"id":"a/b:7b","meta":{"n_ctx_train":32768}}', 32768),
        (b'{"id":"a/b:7b","meta":null}', None),
    ],
)
def test_an_entry_is_a_model_that_is_up_whoever_wrote_it(entry: bytes, context: int | None) -> None:
    told = msgspec.json.decode(b'{"object":"list","data":[' + entry + b"]}", type=OpenAIModels)
    (state,) = read_states(told)
    assert (state.id, state.status, state.limits.context) == ("a/b:7b", "loaded", context)
    assert not state.can_sleep
    assert not has_lifecycle(state)


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (b'{"data":[{"id":"a"},{"id":"b"},{"id":"a"}]}', ["a", "b"]),
        (b'{"object":"list","data":null}', []),
        (b"{}", []),
    ],
)
def test_each_model_is_listed_once(body: bytes, ids: list[str]) -> None:
    told = msgspec.json.decode(body, type=OpenAIModels)
    assert [state.id for state in read_states(told)] == ids


def test_no_model_of_a_catalogue_is_placed_there() -> None:
    found = describe("https://host/api")
    assert (found.devices, found.harnesses) == ([], ["openai"])
