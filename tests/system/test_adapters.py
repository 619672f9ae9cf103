# SPDX-License-Identifier: GPL-3.0-or-later
"""LoRA adapters through both daemons: models of their own to who asks, wherever their model has them."""

import json
from typing import Any

import pytest

pytestmark = pytest.mark.slow

MODEL = "echo/m"


async def test_an_adapter_is_listed_and_served_where_its_model_has_it(fleet: Any) -> None:
    having, lacking = [await fleet.neuron(name) for name in "ab"]
    gateway = await fleet.gateway(having, lacking)
    spec = {"model_id": MODEL, "harness": "echo"}
    assert (await lacking.post("/models/load", spec))[0] == 200
    spec["lora"] = {"pirate": "org/pirate"}  # type: ignore[assignment]
    assert (await having.post("/models/load", spec))[0] == 200
    listed = await gateway.until("/v1/models", lambda found: len(found["data"]) == 2)
    base, adapter = listed["data"]
    assert (base["id"], base.get("parent")) == (MODEL, None)
    told = adapter["id"], adapter["parent"], adapter["root"], adapter["loaded"]
    assert told == ("pirate", MODEL, "org/pirate", True)
    assert [place["node"] for place in adapter["locations"]] == ["a"]
    assert (await gateway.get("/v1/models/pirate"))["parent"] == MODEL
    for _ in range(4):
        assert (await gateway.chat("pirate"))["model"] == "pirate"
    status, headers, raw = await gateway.post(
        "/v1/messages",
        {"model": "pirate", "max_tokens": 9, "messages": [{"role": "user", "content": "ahoy"}]},
    )
    assert (status, headers[b"x-cortex-node"], headers[b"x-cortex-model"]) == (
        200,
        b"a",
        MODEL.encode(),
    )
    assert json.loads(raw)["model"] == "pirate"


async def test_an_adapter_that_is_declared_has_its_model_loaded(fleet: Any) -> None:
    models = f'[[models]]\nid = "{MODEL}"\nharness = "echo"\nlora = {{pirate = "org/pirate"}}\n'
    gateway = await fleet.gateway(await fleet.neuron(), models=models)
    listed = await gateway.until("/v1/models", lambda found: len(found["data"]) == 2)
    assert [(each["id"], each["loaded"]) for each in listed["data"]] == [
        (MODEL, False),
        ("pirate", False),
    ]
    assert (await gateway.chat("pirate"))["model"] == "pirate"
