# SPDX-License-Identifier: GPL-3.0-or-later
"""Embeddings, scores and ranks on real vLLM: of a random BERT, and of the demo model turned into an embedder."""

import asyncio
import base64
import json
import math
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

EMBEDDINGS = "/v1/embeddings"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "hello", "world"]
POSITIONS = 64
LONG = "cat " * 200


def make_bert(folder: Path) -> Any:
    """A tiny BERT with random weights, and its tokenizer; returns it."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 64,
    }  # the CPU engine wants heads of 32 and more
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
    lengths = {"vocab_size": len(WORDS), "max_position_embeddings": POSITIONS}
    bert = BertModel(BertConfig(**sizes, **layers, **lengths)).eval()
    bert.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = {"tokenizer_class": "BertTokenizer", "model_max_length": POSITIONS}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return bert


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedder(
    start_model: Any, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Any, Any]]:
    folder = tmp_path_factory.mktemp("bert")
    bert = await asyncio.to_thread(make_bert, folder)
    run_dir = tmp_path_factory.mktemp("r")
    model = await start_model(run_dir, model_path=folder, dtype="float32")
    yield model, bert
    await model.engine.stop()
    assert list(run_dir.iterdir()) == []


async def embed(model: Any, said: Any, **fields: Any) -> list[Any]:
    answer = await model.post(EMBEDDINGS, {"model": "m", "input": said, **fields})
    assert answer.status == 200, answer.body
    return [entry["embedding"] for entry in answer.json["data"]]


async def test_it_says_what_it_can_do(embedder: Any) -> None:
    model, _ = embedder
    assert model.ready.capabilities == ["embeddings", "score", "rerank"]
    assert model.ready.limits.context == POSITIONS
    assert model.ready.limits.output is None
    assert "/v1/chat/completions" not in model.engine.routes()


async def test_an_embedding_is_what_the_model_computes(embedder: Any) -> None:
    import torch

    model, bert = embedder
    (found,) = await embed(model, "hello world")
    ids = [WORDS.index(word) for word in ("[CLS]", "hello", "world", "[SEP]")]
    with torch.inference_mode():
        state = bert(torch.tensor([ids])).last_hidden_state[0, 0]
    expected = (state / state.norm()).tolist()
    assert found == pytest.approx(expected, abs=1e-4)


async def test_equal_texts_are_equal_and_others_are_not(embedder: Any) -> None:
    model, _ = embedder
    one, other, again = await embed(model, ["cat", "hello dog", "cat"])
    assert one == pytest.approx(again, abs=1e-5)
    assert one != pytest.approx(other, abs=1e-2)
    assert math.hypot(*one) == pytest.approx(1, abs=1e-4)
    (by_tokens,) = await embed(model, [[2, WORDS.index("cat"), 3]])
    assert by_tokens == pytest.approx(one, abs=1e-5)


async def test_base64_is_the_same_numbers(embedder: Any) -> None:
    model, _ = embedder
    (numbers,) = await embed(model, "cat", encoding_format=None)
    (encoded,) = await embed(model, "cat", encoding_format="base64")
    raw = base64.b64decode(encoded)
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(numbers, abs=1e-6)


async def test_tokens_are_counted(embedder: Any) -> None:
    model, _ = embedder
    asked = {"model": "m", "input": ["cat", "hello dog"]}
    answer = await model.post(EMBEDDINGS, asked)
    assert answer.json["usage"]["prompt_tokens"] == 7
    assert answer.json["usage"]["total_tokens"] == 7
    assert None not in answer.json["usage"].values()
    tokens = await model.post("/tokenize", {"prompt": "hello dog"})
    assert tokens.json["tokens"] == [2, WORDS.index("hello"), WORDS.index("dog"), 3]


async def test_what_is_too_long_is_cut_when_that_is_asked_for(embedder: Any) -> None:
    model, _ = embedder
    asked = {"model": "m", "input": LONG, "truncate_prompt_tokens": -1}
    answer = await model.post(EMBEDDINGS, asked)
    assert answer.json["usage"]["prompt_tokens"] == POSITIONS


REFUSED: list[tuple[str, dict[str, Any], str, str | None]] = [
    (EMBEDDINGS, {"input": LONG}, "context_length_exceeded", None),
    (EMBEDDINGS, {"input": []}, "invalid_request_body", None),
    (EMBEDDINGS, {}, "invalid_request_body", "input"),
    (EMBEDDINGS, {"input": None}, "invalid_request_body", "input"),
    (EMBEDDINGS, {"input": 3}, "invalid_request_body", "input"),
    (EMBEDDINGS, {"input": ["a", None]}, "invalid_request_body", "input.0"),
    (EMBEDDINGS, {"input": [99999]}, "invalid_request_body", None),
    (EMBEDDINGS, {"input": "x", "dimensions": 8}, "invalid_request_body", None),
    (EMBEDDINGS, {"input": "x", "encoding_format": "bytes"}, "invalid_request_body", "encoding_format"),
    (EMBEDDINGS, {"input": "x", "truncate_prompt_tokens": 999}, "invalid_request_body", None),
    ("/v1/score", {"text_1": "a"}, "invalid_request_body", "text_2"),
    ("/v1/score", {"text_1": "a", "text_2": []}, "invalid_request_body", None),
    ("/v1/score", {"text_1": "a", "text_2": LONG}, "context_length_exceeded", None),
    ("/v1/rerank", {"query": "a"}, "invalid_request_body", "documents"),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "invalid_request_body", "top_n"),
    ("/tokenize", {"prompt": 3}, "invalid_request_body", "prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "asked", "code", "param"), REFUSED)
async def test_refusals(
    embedder: Any, path: str, asked: dict[str, Any], code: str, param: str | None
) -> None:
    answer = await embedder[0].post(path, {"model": "m", **asked})
    error = answer.json["error"]
    assert (answer.status, error["code"], error["param"]) == (400, code, param), error


async def test_why_dimensions_cannot_be_had_is_said(embedder: Any) -> None:
    answer = await embedder[0].post(EMBEDDINGS, {"model": "m", "input": "x", "dimensions": 8})
    assert "dimensions must be unset" in answer.json["error"]["message"]


async def test_a_score_is_the_cosine_of_two_embeddings(embedder: Any) -> None:
    model, _ = embedder
    one, other = await embed(model, ["cat", "hello dog"])
    cosine = sum(a * b for a, b in zip(one, other, strict=True))
    asked = {"model": "m", "text_1": "cat", "text_2": ["hello dog", "cat"]}
    scores = [entry["score"] for entry in (await model.post("/v1/score", asked)).json["data"]]
    assert scores == pytest.approx([cosine, 1.0], abs=1e-4)


async def test_ranks_are_the_best_first(embedder: Any) -> None:
    model, _ = embedder
    documents = ["hello dog", "cat", "world"]
    asked = {"model": "m", "query": "cat", "documents": documents}
    ranked = (await model.post("/v1/rerank", asked)).json["results"]
    assert ranked[0]["index"] == 1
    assert ranked[0]["document"]["text"] == "cat"
    scores = [entry["relevance_score"] for entry in ranked]
    assert scores == sorted(scores, reverse=True)
    best = (await model.post("/v1/rerank", {**asked, "top_n": 1})).json["results"]
    assert [entry["index"] for entry in best] == [1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turned(
    start_model: Any, embedder: Any, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Any]:
    """The demo model as an embedder. After the other: one start at a time."""
    how = {"runner": "pooling", "convert": "embed"}
    model = await start_model(tmp_path_factory.mktemp("r"), engine_args=how)
    yield model
    await model.engine.stop()


async def test_a_model_that_talks_can_be_turned_into_an_embedder(turned: Any) -> None:
    assert turned.ready.capabilities == ["embeddings", "score", "rerank"]
    (found,) = await embed(turned, "hello")
    assert len(found) == 128
    assert math.hypot(*found) == pytest.approx(1, abs=1e-2)


async def test_an_empty_text_is_refused_where_it_has_no_tokens(turned: Any) -> None:
    answer = await turned.post(EMBEDDINGS, {"model": "m", "input": ""})
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_request_body")


async def test_a_client_that_leaves_frees_the_embedder(turned: Any) -> None:
    leave = asyncio.Event()
    asked = {"model": "m", "input": ["hello " * 1000] * 100}
    task = asyncio.create_task(turned.post(EMBEDDINGS, asked, leave=leave))
    await until(lambda: unfinished(turned) > 0, 20)
    leave.set()
    await until(lambda: unfinished(turned) == 0, 1)
    await task


def unfinished(model: Any) -> int:
    """Requests in the engine. A step ends those of an embedder that it runs, so they are seen waiting only."""
    activity = model.engine.activity()
    return int(activity.running + activity.waiting)


async def until(true: Any, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.005)


async def test_a_model_that_cannot_answer_is_no_start(
    start_model: Any, tmp_path: Path, run_dir: Path
) -> None:
    """Heads of 16: the CPU engine comes up, and dies of the first thing that it is asked."""
    from neuron.host.engine import StartFailedError

    def narrow() -> None:
        make_bert(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config["num_attention_heads"] = 4
        (tmp_path / "config.json").write_text(json.dumps(config))

    await asyncio.to_thread(narrow)
    with pytest.raises(StartFailedError, match="head_dim=16"):
        await start_model(run_dir, model_path=tmp_path)
