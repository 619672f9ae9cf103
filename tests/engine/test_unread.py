# SPDX-License-Identifier: GPL-3.0-or-later
"""Fields that OpenAI publishes and vLLM knows nothing of: the answer comes, and names them as dropped."""

import typing
from typing import Any

import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses

pytestmark = pytest.mark.asyncio(loop_scope="session")

PORT = "Which port does the gateway use?"
# What is asked, by the type that holds what may be; and what of it is refused, since it would change the answer.
CASES: dict[str, tuple[Any, dict[str, Any], set[str]]] = {
    "/v1/chat/completions": (
        chat.CompletionCreateParamsBase,
        {"messages": [{"role": "user", "content": PORT}], "max_tokens": 1},
        set(),
    ),
    "/v1/completions": (
        completions.CompletionCreateParamsBase,
        {"prompt": PORT, "max_tokens": 1},
        set(),
    ),
    "/v1/responses": (
        responses.ResponseCreateParamsBase,
        {"input": PORT, "max_output_tokens": 1},
        {"conversation", "previous_response_id", "background"},
    ),
}


@pytest.mark.parametrize("path", CASES)
async def test_what_vllm_does_not_know_is_named(model: Any, path: str) -> None:
    from neuron.host.engines.vllm_library import ROUTES

    published, asked, refused = CASES[path]
    unknown = typing.get_type_hints(published).keys() - ROUTES[path].names - refused
    answer = await model.post(path, {"model": "m", **asked, **dict.fromkeys(unknown, "x")})
    assert answer.status == 200, answer.body
    assert answer.header(b"x-cortex-dropped").decode().split(", ") == sorted(unknown)
