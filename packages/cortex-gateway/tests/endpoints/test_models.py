# SPDX-License-Identifier: GPL-3.0-or-later
"""GET /v1/models over HTTP."""

from typing import Any

import pytest

from cortex_core.catalogue import Model
from cortex_core.testing import collect, make_state

MODEL = "echo/slow?token_s=0.05"


async def test_a_model_is_found_by_id_alias_and_bare_name(fake: Any, start: Any) -> None:
    neuron = fake(make_state("hub:org/m"), make_state(MODEL))
    models = [Model(id=MODEL, harness="echo")]
    async with start(neuron, models=models, aliases={"fast": MODEL}) as fleet:
        listed = await fleet.get("/v1/models")
        assert listed["object"] == "list"
        assert [entry["id"] for entry in listed["data"]] == [MODEL, "hub:org/m", "fast"]
        assert await fleet.get(f"/v1/models/{MODEL}") == listed["data"][0]
        assert await fleet.get("/v1/models/org/m") == listed["data"][1]
        alias = await fleet.get("/v1/models/fast")
        assert (alias["id"], alias["alias_of"], alias["loaded"]) == ("fast", MODEL, True)


async def test_a_name_that_is_served_is_told_though_it_is_not_listed(fake: Any, start: Any) -> None:
    aliases = {"claude-*": "m"}
    async with start(fake(make_state("m")), aliases=aliases, default_model="m") as fleet:
        listed = await fleet.get("/v1/models")
        named = [await fleet.get(f"/v1/models/{name}") for name in ("claude-opus-4-8", "o1")]
    assert [entry["id"] for entry in listed["data"]] == ["m"]
    assert [(entry["id"], entry["alias_of"]) for entry in named] == [
        ("claude-opus-4-8", "m"),
        ("o1", "m"),
    ]


@pytest.mark.parametrize(
    ("is_there", "status", "code"),
    [(True, 404, "model_not_found"), (False, 503, "no_healthy_node")],
)
async def test_a_model_that_nobody_knows(
    fake: Any, start: Any, is_there: bool, status: int, code: str
) -> None:
    async with start(fake() if is_there else "http://127.0.0.1:9") as fleet:
        answer = await collect(fleet.gateway.front, "GET", "/v1/models/nobody/knows")
    assert (answer.status, answer.json["error"]["code"]) == (status, code)
    assert (answer.header(b"retry-after") is None) is is_there


async def test_the_list_takes_get_alone(start: Any) -> None:
    async with start() as fleet:
        answer = await collect(fleet.gateway.front, "POST", "/v1/models")
    assert (answer.status, answer.json["error"]["code"]) == (405, "method_not_allowed")
    assert answer.header(b"allow") == b"GET, HEAD"
