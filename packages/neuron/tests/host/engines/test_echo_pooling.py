# SPDX-License-Identifier: GPL-3.0-or-later
import base64
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.errors import ClientError, ContextLengthExceededError, InvalidRequestBodyError
from neuron.host.engines.echo_options import EchoOptions
from neuron.host.engines.echo_pooling import (
    DIMENSIONS,
    EMBEDDER_ROUTES,
    TOKENIZE,
    compare,
    embed,
)
from neuron.host.engines.echo_wire import Head

HEAD = Head(id="embd-1", created=7, model="m")
ROUTES = {**EMBEDDER_ROUTES, "/tokenize": TOKENIZE}


def ask(path: str, options: EchoOptions | None = None, **fields: Any) -> Any:
    body = json.dumps({"model": "m", **fields}).encode()
    return json.loads(ROUTES[path].answer(body, options or EchoOptions(), HEAD))


def vectors(**fields: Any) -> list[Any]:
    answer = ask("/v1/embeddings", **fields)
    assert [entry["index"] for entry in answer["data"]] == list(range(len(answer["data"])))
    return [entry["embedding"] for entry in answer["data"]]


@given(st.text())
def test_every_text_has_a_vector_of_length_1_and_is_nearest_to_itself(text: str) -> None:
    vector = embed(text)
    assert len(vector) == DIMENSIONS
    assert math.isclose(math.fsum(value * value for value in vector), 1.0)
    assert compare(text, text) == pytest.approx(1.0)


def test_texts_that_share_words_are_near_each_other() -> None:
    assert compare("a cat sat", "the cat sat") > compare("a cat sat", "two dogs ran")
    assert embed("Some WORDS") == embed("words some")


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ([1, 2], ["1 2"]),
        ([[1, 2], [3]], ["1 2", "3"]),
    ],
)
def test_an_input_may_be_texts_or_tokens(given: Any, texts: list[str]) -> None:
    assert vectors(input=given) == [embed(text) for text in texts]


def test_base64_holds_the_same_numbers_in_32_bits() -> None:
    (numbers,) = vectors(input="one two")
    (packed,) = vectors(input="one two", encoding_format="base64")
    assert struct.unpack(f"<{DIMENSIONS}f", base64.b64decode(packed)) == pytest.approx(numbers)
    assert vectors(input="one", encoding_format="float") == vectors(input="one")
    assert len(vectors(input="one", dimensions=3)[0]) == 3


def test_tokens_are_counted() -> None:
    answer = ask("/v1/embeddings", input=["one two", "three"])
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert (answer["object"], answer["model"], answer["data"][0]["object"]) == (
        "list",
        "m",
        "embedding",
    )


@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents")])
def test_scores_are_of_pairs_or_of_one_with_all(names: tuple[str, str]) -> None:
    def scores(left: Any, right: Any) -> list[float]:
        answer = ask("/v1/score", **{names[0]: left, names[1]: right})
        return [entry["score"] for entry in answer["data"]]

    assert scores("a", "a") == [pytest.approx(1.0)]
    assert scores("a", ["a", "b"]) == [compare("a", "a"), compare("a", "b")]
    assert scores(["a", "b"], ["b", "b"]) == [compare("a", "b"), compare("b", "b")]


def test_the_nearest_document_comes_first() -> None:
    documents = ["far away", "the cat", {"text": "the cat sat"}]
    answer = ask("/v1/rerank", query="the cat sat", documents=documents)
    assert [result["index"] for result in answer["results"]] == [2, 1, 0]
    assert answer["results"][0]["document"] == {"text": "the cat sat"}
    assert answer["results"][0]["relevance_score"] == pytest.approx(1.0)
    assert answer["usage"]["total_tokens"] == 10
    first = ask("/v1/rerank", query="the cat sat", documents=documents, top_n=1)
    assert first["results"] == answer["results"][:1]
    assert ask("/v1/rerank", query="a", documents=documents, top_n=0)["results"]


def test_tokens_are_words() -> None:
    answer = ask("/tokenize", prompt="one two one", return_token_strs=True)
    assert (answer["count"], answer["token_strs"]) == (3, ["one", " two", " one"])
    assert len(set(answer["tokens"])) == 3  # the space before a word is part of it
    messages = [{"role": "user", "content": "one two"}, {"role": "user", "content": "three"}]
    chat = ask("/tokenize", EchoOptions(context=9), messages=messages)
    assert (chat["count"], chat["max_model_len"], chat["token_strs"]) == (3, 9, None)


@pytest.mark.parametrize(
    ("path", "fields", "kind"),
    [
        ("/v1/embeddings", {}, InvalidRequestBodyError),
        ("/v1/embeddings", {"input": []}, InvalidRequestBodyError),
        ("/v1/embeddings", {"input": "a", "dimensions": -1}, InvalidRequestBodyError),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, InvalidRequestBodyError),
        ("/v1/embeddings", {"input": "a b c"}, ContextLengthExceededError),
        ("/v1/score", {"text_1": "a"}, InvalidRequestBodyError),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a"] * 3}, InvalidRequestBodyError),
        ("/v1/rerank", {"query": "a", "documents": ["a b c"]}, ContextLengthExceededError),
        ("/tokenize", {}, InvalidRequestBodyError),
    ],
)
def test_what_cannot_be_answered_is_the_client_s_mistake(
    path: str, fields: dict[str, Any], kind: type[ClientError]
) -> None:
    with pytest.raises(kind):
        ask(path, EchoOptions(context=2), **fields)
