# SPDX-License-Identifier: GPL-3.0-or-later
"""What is allowed, and likely not meant, is said; what is meant is not."""

from typing import Any

import pytest

from cortex_core.catalogue import Catalogue, Model
from cortex_gateway.config import Config, NeuronSettings
from cortex_gateway.doubts import find_doubts

NODES = [NeuronSettings(name="a", endpoint="http://a"), NeuronSettings(name="b", endpoint="http://b")]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "catalogue", "doubts"),
    [
        ({}, {}, []),
        ({"default_model": "m"}, {"pinned_on": ["a", "b"]}, []),
        ({"default_model": "al"}, {"aliases": {"al": "m", "sq": "sql"}}, []),
        ({"default_model": "sql"}, {}, []),
        (
            {},
            {"aliases": {"a": "m", "b": "gone"}},
            ["the alias 'b' names 'gone', which no catalogue declares: it is served where a node has it"],
        ),
        (
            {"default_model": "nosuch"},
            {},
            ["`default_model` is 'nosuch', which no catalogue declares: it is served where a node has it"],
        ),
        (
            {},
            {"pinned_on": ["a", "zz"]},
            ["the model 'm' is pinned on 'zz', which is none of the nodes a, b"],
        ),
    ],
)  # fmt: skip
def test_what_is_likely_not_meant_is_told(
    config: dict[str, Any], catalogue: dict[str, Any], doubts: list[str]
) -> None:
    pinned_on = catalogue.pop("pinned_on", [])
    model = Model(id="m", lora={"sql": "org/sql"}, pinned_on=pinned_on)
    found = find_doubts(Config(neurons=NODES, **config), Catalogue(models=[model], **catalogue))
    assert found == doubts
