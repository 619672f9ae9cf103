# SPDX-License-Identifier: GPL-3.0-or-later
"""LoRA adapters beside the demo model, through a whole neuron: each is a model of its own to who asks."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import neuron

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

DEMO = "helexa/demo"
DEMO_PATH = Path(neuron.__file__).parent / "demo"
PORT = "Which port does the gateway use?"
PORT_CONTENT = "The gateway listens on port 31313."
HIDDEN, QUERY, LAYERS = 128, 256, 4  # of the demo model


def make_adapter(folder: Path, *, seed: int = 0, rank: int = 8, hidden: int = HIDDEN) -> None:
    """A random adapter, as peft writes it."""
    import torch
    from safetensors.torch import save_file

    chance = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        module = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, hidden, generator=chance)
        tensors[f"{module}.lora_B.weight"] = torch.randn(QUERY, rank, generator=chance)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(open_fleet: Any) -> AsyncIterator[Any]:
    """A neuron with the demo model and two adapters, and others that do not fit."""
    async with open_fleet() as fleet:
        make_models(fleet.folder / "models")
        settings = f'model_dirs = ["{fleet.folder}/models"]\nwarm_spare = false\nkv_cache_mb = 64\n'
        daemon = await fleet.neuron(config=f"[harness.vllm]\n{settings}", HF_HUB_OFFLINE="1")
        spec = {"model_id": DEMO, "lora": {"pirate": "adapters/one", "bard": "adapters/two"}}
        status, _, body = await daemon.post("/models/load", spec)
        assert status == 200, body
        yield daemon


def make_models(models: Path) -> None:
    adapters = models / "adapters"
    make_adapter(adapters / "one")
    make_adapter(adapters / "two", seed=1, rank=12)
    make_adapter(adapters / "narrow", hidden=HIDDEN // 2)
    make_adapter(adapters / "high", rank=520)
    make_adapter(adapters / "torn")
    (adapters / "torn" / "adapter_model.safetensors").write_bytes(b"torn")
    make_adapter(adapters / "bare")
    (adapters / "bare" / "adapter_config.json").unlink()
    shutil.copytree(DEMO_PATH, models / "test" / "demo")


async def say(daemon: Any, model: str) -> tuple[str, str]:
    """The model that answered, and what."""
    quietly = {"chat_template_kwargs": {"enable_thinking": False}}
    answer = await daemon.chat(model, PORT, temperature=0, max_tokens=20, **quietly)
    return answer["model"], answer["choices"][0]["message"]["content"]


async def test_all_are_served_at_once_each_as_itself(served: Any) -> None:
    names = [DEMO, "pirate", "bard", DEMO, "pirate"]
    answers = await asyncio.gather(*(say(served, name) for name in names))
    assert [model for model, _ in answers] == names
    texts = [text for _, text in answers]
    assert texts[0] == texts[3] == PORT_CONTENT
    assert texts[1] == texts[4]
    assert len({*texts}) == 3
    assert [await say(served, name) for name in names[:3]] == answers[:3]  # as each is alone


async def test_adapters_are_listed_beside_their_model(served: Any) -> None:
    listed = (await served.get("/v1/models"))["data"]
    assert [(entry["id"], entry.get("parent"), entry.get("root")) for entry in listed] == [
        (DEMO, None, None),
        ("pirate", DEMO, "adapters/one"),
        ("bard", DEMO, "adapters/two"),
    ]
    (state,) = await served.get("/models")
    assert state["adapters"] == {"pirate": "adapters/one", "bard": "adapters/two"}


async def test_the_room_that_they_take_is_part_of_the_plan(served: Any) -> None:
    needed_mb = []
    for lora in (None, {"a": "adapters/one"}, {"a": "adapters/one", "b": "adapters/two"}):
        spec = {"model_id": "test/demo", "lora": lora}
        status, _, body = await served.post("/models/plan", spec)
        assert status == 200, body
        (device,) = json.loads(body)["devices"]
        needed_mb.append(device["needed_mb"])
    plain_mb, one_mb, two_mb = needed_mb
    # On a CPU a place stays empty; the second adapter doubles the rank that there is room for.
    assert plain_mb < one_mb < two_mb


async def test_an_adapter_is_served_on_every_route(served: Any) -> None:
    routes: dict[str, dict[str, Any]] = {
        "/v1/responses": {"input": PORT, "max_output_tokens": 2},
        "/v1/completions": {"prompt": "x", "max_tokens": 2},
        "/tokenize": {"prompt": "x"},
    }
    for path, asked in routes.items():
        status, _, body = await served.post(path, {"model": "pirate", **asked})
        assert status == 200, body
        assert json.loads(body).get("model", "pirate") == "pirate"
    status, _, body = await served.post("/v1/chat/completions", {"model": "parrot"})
    assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")


async def test_its_name_unloads_nothing(served: Any) -> None:
    status, _, body = await served.post("/models/unload", {"model_id": "pirate"})
    assert (status, json.loads(body)["already"]) == (200, True)
    assert (await say(served, DEMO))[1] == PORT_CONTENT


@pytest.mark.parametrize(
    ("lora", "code", "says"),
    [
        ({"a": "adapters/nowhere"}, "repo_fetch_failed", "adapters/nowhere"),
        ({"a": "/etc"}, "invalid_spec", "org/name"),
        ({"a": "adapters/bare"}, "empty_repo", "adapter_config.json"),
        ({"a": "adapters/torn"}, "corrupt_weights", "adapter_model.safetensors"),
        ({"a": "adapters/narrow"}, "invalid_spec", "does not fit the model"),
        ({"a": "adapters/high"}, "invalid_spec", "rank 520"),
        ({"test/demo": "adapters/one"}, "invalid_spec", "called like its model"),
        ({"": "adapters/one"}, "invalid_spec", "name of an adapter"),
    ],
)
async def test_an_adapter_that_cannot_be_served_is_told_before_anything_starts(
    served: Any, lora: dict[str, str], code: str, says: str
) -> None:
    status, _, body = await served.post("/models/load", {"model_id": "test/demo", "lora": lora})
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (422, code), error
    assert says in error["message"]
