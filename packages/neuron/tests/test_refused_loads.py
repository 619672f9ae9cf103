# SPDX-License-Identifier: GPL-3.0-or-later
"""Every load that is refused before an engine is started, with what who asked is told."""

import json
import shutil
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from neuron import demo
from neuron.config import Config, HarnessEntry, HarnessSettings, VllmSettings
from neuron.harnesses.failures import REFUSED_KINDS
from neuron.testing import FakeGpus, Served, serve

DEMO = "helexa/demo"
# Told by a source, or of a disk that is full: tests of their own, in `weights`; of several GPUs: in test_fitting.
ELSEWHERE = {"quant_not_found", "insufficient_disk", "multi_host_unsupported"}

CASES: list[tuple[dict[str, Any], str, str]] = [
    (
        {"harness": "none"},
        "unknown_harness",
        "The model 'helexa/demo' cannot be loaded: there is no harness 'none' here. Known are: vllm, echo.",
    ),
    (
        {"model_id": ""},
        "invalid_spec",
        "The model '' cannot be loaded: a model_id is 1 to 512 characters that can be printed. Correct the spec.",
    ),
    (
        {"model_id": "a\nb"},
        "invalid_spec",
        "The model 'a\nb' cannot be loaded: a model_id is 1 to 512 characters that can be printed. Correct the spec.",
    ),
    (
        {"tensor_parallel": 0},
        "invalid_spec",
        "The model 'helexa/demo' cannot be loaded: tensor_parallel is 0, and must be at least 1. Correct the spec.",
    ),
    (
        {"max_model_len": -1},
        "invalid_spec",
        "The model 'helexa/demo' cannot be loaded: max_model_len is -1, and must be at least 1. Correct the spec.",
    ),
    (
        {"kv_cache_mb": 0},
        "invalid_spec",
        "The model 'helexa/demo' cannot be loaded: kv_cache_mb is 0, and must be at least 1. Correct the spec.",
    ),
    (
        {"devices": [7]},
        "invalid_spec",
        "The model 'helexa/demo' cannot be loaded: there is no device 7. There are: 0 (cpu).",
    ),
    (
        {"engine_args": {"speculative_config": {"method": "eagle"}}},
        "invalid_spec",
        "The model 'helexa/demo' cannot be loaded: engine_args.speculative_config takes the method `ngram` only. "
        'Write {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}.',
    ),
    (
        {"model_id": "/etc/passwd"},
        "invalid_spec",
        "The model '/etc/passwd' cannot be loaded: the id is not written as `org/name` or `scheme:org/name`. "
        "Paths can be set in neuron.toml only.",
    ),
    (
        {"model_id": "echo/m?tokns=1", "harness": "echo"},
        "invalid_spec",
        "The model 'echo/m?tokns=1' cannot be loaded: an option does not fit: Object contains unknown field `tokns`. "
        "Options are tokens, ",
    ),
    (
        {"tensor_parallel": 3},
        "tp_infeasible",
        "The model 'helexa/demo' cannot be loaded: tensor_parallel is 3, and its 4 attention heads "
        "(2 of keys and values) cannot be dealt to as many ranks evenly. "
        "What can be is tensor_parallel 1, 2, 4.",
    ),
    (
        {"kv_cache_mb": 5000},
        "insufficient_vram",
        "The model 'helexa/demo' cannot be loaded: it needs 5003 MiB of device 0, which has 1000 MiB free of 1000. "
        "Lower kv_cache_mb to 997 or less.",
    ),
    (
        {"kv_cache_mb": 1, "max_model_len": 512},
        "insufficient_vram",
        "The model 'helexa/demo' cannot be loaded: its KV cache of 1 MiB holds 384 tokens of one request; "
        "max_model_len is 512. Set max_model_len to 384 or less, or kv_cache_mb to 2 or more.",
    ),
    (
        {"model_id": "org/nowhere"},
        "repo_fetch_failed",
        "The model 'org/nowhere' cannot be loaded: its files are not on this machine; looked for {models}/org/nowhere",
    ),
    (
        {"model_id": "nobody:org/m"},
        "repo_fetch_failed",
        "The model 'nobody:org/m' cannot be loaded: there is no source 'nobody' here. Known are: huggingface; ",
    ),
    (
        {"model_id": "org/empty"},
        "empty_repo",
        "The model 'org/empty' cannot be loaded: {models}/org/empty has no configuration (config.json, params.json). "
        "Fetch the model's files again.",
    ),
    (
        {"model_id": "org/untold"},
        "empty_repo",
        "The model 'org/untold' cannot be loaded: {models}/org/untold has no tokenizer (tokenizer.json, "
        "tokenizer.model, tekken.json). Fetch the model's files again.",
    ),
    (
        {"model_id": "org/cut"},
        "corrupt_weights",
        "The model 'org/cut' cannot be loaded: model.safetensors is no whole weights file: it has 13 bytes where its "
        "header tells of 10. Fetch the model's files again.",
    ),
    (
        {"model_id": "org/torn"},
        "corrupt_weights",
        "The model 'org/torn' cannot be loaded: config.json is not valid JSON: Input data was truncated. "
        "Fetch the model's files again.",
    ),
    (
        {"model_id": "org/odd"},
        "unsupported_architecture",
        "The model 'org/odd' cannot be loaded: {models}/org/odd/config.json names neither an architecture nor a "
        "model_type. Use a model in the form that Hugging Face's transformers writes.",
    ),
]


def make_models(models: Path) -> None:
    """Models that cannot be loaded, each for a reason of its own."""
    for name in ("cut", "torn", "odd", "untold"):
        folder = models / "org" / name
        folder.mkdir(parents=True)
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo.path() / file, folder)
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    (models / "org" / "cut" / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}cut")
    (models / "org" / "torn" / "config.json").write_text("{")
    (models / "org" / "odd" / "config.json").write_text(json.dumps({"hidden_size": 1}))
    for tokenizer in (models / "org" / "untold").glob("tokenizer*"):
        tokenizer.unlink()
    (models / "org" / "empty").mkdir()


@pytest.fixture
async def refusing(tmp_path: Path) -> AsyncIterator[Served]:
    make_models(tmp_path)
    settings = VllmSettings(
        download=False, warm_spare=False, model_dirs=[str(tmp_path)], cpu_budget_mb=1000
    )
    harnesses = [HarnessEntry(name="vllm"), HarnessEntry(name="echo")]
    config = Config(harnesses=harnesses, harness=HarnessSettings(vllm=settings))
    async with serve(config, FakeGpus()) as served:
        yield served


@pytest.mark.parametrize(
    ("spec", "kind", "message"), CASES, ids=[f"{kind} {spec}" for spec, kind, _ in CASES]
)
async def test_a_refused_load_tells_its_kind_and_what_to_do(
    refusing: Served, tmp_path: Path, spec: dict[str, Any], kind: str, message: str
) -> None:
    status, answer, headers = await refusing.post("/models/load", {"model_id": DEMO, **spec})
    error = answer["error"]
    assert (status, error["code"], error["load_kind"]) == (422, kind, kind)
    assert error["message"].startswith(message.replace("{models}", str(tmp_path))), error
    assert error["suggestion"]
    assert error["message"].endswith(error["suggestion"])
    assert b"retry-after" not in headers
    assert await refusing.get("/models") == []


def test_every_kind_is_here_or_where_it_is_said_to_be() -> None:
    assert {kind for _, kind, _ in CASES} | ELSEWHERE == REFUSED_KINDS


@pytest.mark.parametrize(
    ("path", "body", "code", "message"),
    [
        ("/models/load", b"{", "malformed_json", "is not valid JSON"),
        ("/models/load", b"[]", "invalid_request_body", "object"),
        ("/models/load", b"{}", "invalid_request_body", "model_id"),
        ("/models/load", b'{"model_id": 3}', "invalid_request_body", "model_id"),
        ("/models/load", b'{"model_id": "a", "quantt": "x"}', "invalid_request_body", "quantt"),
        ("/models/load", b'{"model_id": "a", "wait": "no"}', "invalid_request_body", "wait"),
        ("/models/plan", b'{"model_id": "a", "vram_mb": "x"}', "invalid_request_body", "vram_mb"),
        ("/models/unload", b"{}", "invalid_request_body", "model_id"),
        ("/models/sleep", b'{"model_id": "a", "level": 2}', "invalid_request_body", "level"),
        ("/models/wake", b'{"model_id": "a", "force": 1}', "invalid_request_body", "force"),
    ],
)
async def test_a_body_that_is_none_names_the_field(
    refusing: Served, path: str, body: bytes, code: str, message: str
) -> None:
    status, answer, _ = await refusing.post(path, body)
    assert (status, answer["error"]["code"]) == (400, code)
    assert message in answer["error"]["message"]


async def test_another_spec_of_what_is_here_names_what_differs(refusing: Served) -> None:
    await refusing.load("echo/m")
    spec = {"model_id": "echo/m", "harness": "echo", "max_model_len": 8}
    status, answer, _ = await refusing.post("/models/load", spec)
    assert (status, answer["error"]["code"]) == (409, "spec_conflict")
    assert "max_model_len" in answer["error"]["message"]
