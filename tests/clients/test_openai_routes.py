# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenAI's own package on the routes beside chat, against gateway, neuron and echo engines."""

from typing import Any

import openai
import pytest

pytestmark = pytest.mark.slow

WRITER = "echo/writer"
EMBEDDER = "echo/embedder?embeddings=1"
BREAKS = "echo/breaks?fail=stream&tokens=50"
CATALOGUE = "".join(
    f'[[models]]\nid = "{model}"\nharness = "echo"\n' for model in (WRITER, EMBEDDER, BREAKS)
)


@pytest.fixture
async def client(fleet: Any) -> Any:
    gateway = await fleet.gateway(await fleet.neuron(), models=CATALOGUE)
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.endpoint}/v1", api_key="none", max_retries=0
    ) as made:
        yield made


async def test_vectors_come_in_the_form_that_the_package_asks_for(client: Any) -> None:
    packed = await client.embeddings.create(model=EMBEDDER, input=["one two", "one two"])
    plain = await client.embeddings.create(
        model=EMBEDDER, input="one two", encoding_format="float", dimensions=64
    )
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding)
    assert packed.data[1].index == 1
    assert (packed.usage.prompt_tokens, packed.usage.total_tokens) == (4, 4)


async def test_a_response_is_read_whole_and_streamed(client: Any) -> None:
    whole = await client.responses.create(model=WRITER, input="one two three")
    assert (whole.output_text, whole.status, whole.usage.output_tokens) == (
        "one two three",
        "completed",
        3,
    )
    async with client.responses.stream(model=WRITER, input="one two three") as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == "one two three"
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


async def test_a_response_that_breaks_off_says_why_in_its_stream(client: Any) -> None:
    stream = await client.responses.create(model=BREAKS, input="one two", stream=True)
    events = [event async for event in stream]
    assert (events[-1].type, events[-1].code) == ("error", "engine_died")
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_a_model_asked_for_what_it_does_not_do_says_so(client: Any) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        await client.embeddings.create(model=WRITER, input="a")
    assert caught.value.code == "wrong_modality"
    assert "it has the capabilities: text" in caught.value.message
