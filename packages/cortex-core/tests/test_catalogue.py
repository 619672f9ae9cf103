# SPDX-License-Identifier: GPL-3.0-or-later
"""What may run where, and what a neuron is asked for."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from cortex_core.catalogue import Catalogue, MistakeError, Model, infeasible_reason
from cortex_core.config import read_config
from cortex_core.control import LoadRequest, ModelSpec, spec_differences
from cortex_core.discovery import Discovery
from cortex_core.errors import OperatorError
from cortex_core.testing import make_device, make_discovery

SMALL = make_discovery(make_device(0, 8_000))
PAIR = make_discovery(make_device(0, 24_000), make_device(1, 24_000))
MIXED = make_discovery(make_device(0, 8_000), make_device(1, 24_000))
NONE = make_discovery()
ECHO = make_discovery(harnesses=("echo",))


@pytest.mark.parametrize(
    ("model", "found", "reason"),
    [
        (Model(id="m"), SMALL, None),
        (Model(id="m"), NONE, "needs 1 device(s) of 0 MiB, has no devices"),
        (Model(id="m", min_device_vram_mb=8_000), SMALL, None),
        (
            Model(id="m", min_device_vram_mb=8_001),
            SMALL,
            "needs 1 device(s) of 8001 MiB, has 8000 MiB",
        ),
        (Model(id="m", min_devices=2), PAIR, None),
        (
            Model(id="m", min_devices=2, min_device_vram_mb=20_000),
            MIXED,
            "needs 2 device(s) of 20000 MiB, has 8000 MiB, 24000 MiB",
        ),
        # the whole model is split evenly over its devices
        (Model(id="m", min_devices=2, vram_mb=48_000), PAIR, None),
        (
            Model(id="m", min_devices=2, vram_mb=48_001),
            PAIR,
            "needs 2 device(s) of 24001 MiB, has 24000 MiB, 24000 MiB",
        ),
        (Model(id="m", harness="echo"), NONE, None),
        (Model(id="m", harness="echo"), ECHO, None),
        (Model(id="m"), ECHO, "harness 'vllm' is not there, only echo"),
        (Model(id="m", pinned_on=["a"]), SMALL, None),
        (Model(id="m", pinned_on=["b", "c"]), SMALL, "pinned on b, c"),
    ],
)
def test_a_model_may_run_where_everything_holds(
    model: Model, found: Discovery, reason: str | None
) -> None:
    assert infeasible_reason(model, "a", found) == reason


def test_a_neuron_is_asked_with_every_field_of_the_entry() -> None:
    model = Model(id="org/m", harness="vllm", quant="q4", max_model_len=9, source="helexa")
    assert model.spec() == ModelSpec(model_id="helexa:org/m", quant="q4", max_model_len=9)


def test_min_devices_is_the_tensor_parallel_size_unless_it_is_set() -> None:
    assert Model(id="m", min_devices=2).spec().tensor_parallel == 2
    assert Model(id="m", min_devices=2, tensor_parallel=1).spec().tensor_parallel == 1
    assert Model(id="m").spec().tensor_parallel is None


def test_an_alias_means_a_concrete_id() -> None:
    catalogue = Catalogue(models=[Model(id="m")], aliases={"a": "m", "b": "elsewhere"})
    assert catalogue.resolve("a") == "m"
    assert catalogue.resolve("b") == "elsewhere"
    assert catalogue.resolve("m") == "m"
    assert catalogue.find("m") == Model(id="m")
    assert catalogue.find("a") is None


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("claude-opus-4-8", "big"),
        ("claude-haiku-4-5-20251001", "small"),
        ("claude-3-5-haiku", "small"),
        ("claude-", "big"),
        ("claude", None),
        ("Claude-opus", None),  # names are told apart by case
        ("gpt-5", "g"),
        ("a[1]x", "brackets"),
        ("a1x", None),
        ("q?z", "question"),
        ("qyz", None),
        ("tie-x-tie", "first"),
    ],
)
def test_of_the_patterns_that_fit_the_longest_counts(name: str, model: str | None) -> None:
    aliases = {
        "claude-*": "big",
        "claude-*haiku*": "small",
        "gpt-*": "g",
        "a[1]*": "brackets",
        "q?*": "question",
        "tie-*": "first",
        "*-tie": "second",
    }
    assert Catalogue(aliases=aliases).match(name) == model
    assert Catalogue(aliases=aliases).resolve(name) == name


def test_a_pattern_of_many_stars_is_read_in_time() -> None:
    pattern = "*a" * 50 + "*b"
    assert Catalogue(aliases={pattern: "m"}).match("a" * 512) is None


def test_a_default_is_what_every_other_name_means() -> None:
    catalogue = Catalogue(models=[Model(id="m")], aliases={"a": "m", "gpt-*": "g"})
    assert catalogue.with_default(None) is catalogue
    for default in ("m", "a"):
        given = catalogue.with_default(default)
        assert (given.match("x"), given.match("gpt-5")) == ("m", "g")
    assert Catalogue(aliases={"*": "m"}).with_default("n").match("x") == "m"


@pytest.mark.parametrize(
    ("models", "aliases", "message"),
    [
        (["m", "n", "m"], {}, "two entries with the id 'm'"),
        (["m"], {"m": "n"}, "'m', which is the id of a model too"),
        (["m"], {"a": "m", "b": "a"}, "the alias 'b' names 'a', which is an alias itself"),
        (["m"], {"a": "m*"}, "the alias 'a' names 'm\\*'; an alias names one model"),
        (["m"], {"a-*": "b-*"}, "the alias 'a-\\*' names 'b-\\*'; an alias names one model"),
        (["m"], {"a-*": "m", "b": "a-*"}, "names 'a-\\*', which is an alias itself"),
        (["m"], {"": "m"}, "neither may be empty"),
        (["m"], {"a-*": " "}, "neither may be empty"),
    ],
)
def test_a_name_means_one_thing(models: list[str], aliases: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Catalogue(models=[Model(id=model_id) for model_id in models], aliases=aliases)


def test_a_load_request_is_a_spec_and_whether_to_wait() -> None:
    request = LoadRequest(model_id="m", quant="q", wait=False)
    assert request.spec() == ModelSpec(model_id="m", quant="q")


def test_differences_between_specs_are_named() -> None:
    a = ModelSpec(model_id="m", quant="q4", dtype="bfloat16")
    assert spec_differences(a, ModelSpec(model_id="m", quant="q8")) == ["quant", "dtype"]
    assert spec_differences(a, a) == []


def test_an_entry_is_found_under_the_id_that_it_is_loaded_under() -> None:
    catalogue = Catalogue(models=[Model(id="org/m", source="hub"), Model(id="n")])
    assert [model.loaded_id for model in catalogue.models] == ["hub:org/m", "n"]
    found = [catalogue.find_loaded(name) for name in ("hub:org/m", "org/m", "n", "hub:n")]
    assert found == [catalogue.models[0], catalogue.models[0], catalogue.models[1], None]
    assert catalogue.find("hub:org/m") is None


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Model(id="m", harness="echo"), None),
        (Model(id="m", harness="echo", vram_mb=5), "needs 1 device(s) of 5 MiB, has no devices"),
    ],
)
def test_an_echo_model_needs_a_device_only_where_it_is_said_to(
    model: Model, reason: str | None
) -> None:
    assert infeasible_reason(model, "a", ECHO) == reason


CHAIN = Catalogue(
    models=[Model(id=name) for name in ("a", "b", "c", "d")],
    aliases={"bee": "b", "cloud": "vendor/x", "claude-*": "a"},
    fallbacks={"a": ["bee", "cloud"], "b": ["c", "d"], "c": ["d"]},
)


@pytest.mark.parametrize(
    ("model", "fallbacks"),
    [
        ("a", ["b", "c", "d", "vendor/x"]),
        ("b", ["c", "d"]),
        ("c", ["d"]),
        ("d", []),
        ("nobody", []),
    ],
)
def test_fallbacks_come_in_their_order_each_once_and_their_own_after_them(
    model: str, fallbacks: list[str]
) -> None:
    assert CHAIN.fallbacks_of(model) == fallbacks


def test_fallbacks_that_meet_again_are_walked_once() -> None:
    layers = [(f"a{number}", f"b{number}") for number in range(40)]
    catalogue = Catalogue(
        models=[Model(id=name) for layer in layers for name in layer],
        fallbacks={
            name: list(below) for layer, below in itertools.pairwise(layers) for name in layer
        },
    )
    assert len(catalogue.fallbacks_of("a0")) == 78


def test_a_model_that_only_nodes_have_falls_back_by_its_alias() -> None:
    aliases = {"cloud": "vendor/x"}
    catalogue = Catalogue(models=[Model(id="a")], aliases=aliases, fallbacks={"cloud": ["a"]})
    assert catalogue.fallbacks_of("vendor/x") == ["a"]
    assert catalogue.with_default("a").fallbacks_of("vendor/x") == ["a"]


@pytest.mark.parametrize(
    ("fallbacks", "message", "line"),
    [
        ({"a": ["org/bb"]}, "'org/bb', which is neither a model nor an alias here", "a"),
        ({"a": ["org/bb"]}, "the nearest is 'org/b'", "a"),
        ({"nobody": ["a"]}, "'nobody', which is neither", "nobody"),
        ({"a": ["x-*"]}, "'x-*', which is neither", "a"),
        ({"a": ["a"]}, "in a circle: a -> a", "a"),
        ({"org/b": ["c"], "a": ["org/b"], "c": ["a"]}, "org/b -> c -> a -> org/b", "org/b"),
        ({"c": ["a"], "a": ["bee"], "org/b": ["a"]}, "a -> org/b -> a", "a"),
        ({"bee": ["a"], "org/b": ["a"]}, "two entries for the model 'org/b'", "bee"),
    ],
)
def test_fallbacks_that_lead_nowhere_or_back_are_refused_with_their_line(
    fallbacks: dict[str, list[str]], message: str, line: str
) -> None:
    models = [Model(id=name) for name in ("a", "org/b", "c")]
    with pytest.raises(MistakeError) as caught:
        Catalogue(models=models, aliases={"bee": "org/b", "x-*": "a"}, fallbacks=fallbacks)
    assert message in str(caught.value)
    assert caught.value.path == ("fallbacks", line)


@pytest.mark.parametrize(
    ("lines", "number", "told"),
    [
        (["min_devices = 0"], 3, "`min_devices` is 0, and must be at least 1"),
        (["vram_mb = -5000"], 3, "`vram_mb` is -5000, and must be at least 1"),
        (["min_device_vram_mb = 0"], 3, "`min_device_vram_mb` is 0"),
        (["quant = 'q4'", "tensor_parallel = -1"], 4, "`tensor_parallel` is -1"),
        (["max_model_len = -1"], 3, "`max_model_len` is -1"),
        (["kv_cache_mb = 0"], 3, "`kv_cache_mb` is 0"),
        (["devices = []"], 3, "`devices` is empty"),
        (["devices = [0, 1, 0]"], 3, "`devices` has '0' twice"),
        (["min_devices = 2", "devices = [0]"], 4, "`devices` are 1, and it is run on 2"),
        (["tensor_parallel = 4", "devices = [0, 1]"], 4, "`devices` are 2, and it is run on 4"),
        (["lora = { sql = 'a/b', m = 'a/c' }"], 3, "`lora` has 'm', which is the id of a model"),
        (["lora = { n = 'a/b' }", "[[models]]", "id = 'n'"], 3, "`lora` has 'n', which is the id"),
        (["[models.lora]", "n = 'a/b'", "[[models]]", "id = 'n'"], 1, "`lora` has 'n'"),
    ],
)
def test_what_no_engine_can_be_asked_is_refused_with_its_line(
    tmp_path: Path, lines: list[str], number: int, told: str
) -> None:
    path = tmp_path / "models.toml"
    path.write_text("\n".join(["[[models]]", "id = 'm'", *lines]))
    with pytest.raises(OperatorError) as caught:
        read_config(Catalogue, path)
    assert f"line {number}: `models[0]" in caught.value.message
    assert told in caught.value.message


@pytest.mark.parametrize("model_id", ["", " ", "a\nb"])
def test_an_id_is_something_to_name(model_id: str) -> None:
    with pytest.raises(MistakeError, match="which names no model") as caught:
        Model(id=model_id)
    assert caught.value.path == ("id",)


@pytest.mark.parametrize(
    "fields",
    [
        {"devices": [0, 1]},
        {"devices": [0, "GPU-1"], "min_devices": 2},
        {"devices": [0], "min_devices": 2, "tensor_parallel": 1},
    ],
)
def test_devices_may_be_as_many_as_there_are_ranks(fields: dict[str, Any]) -> None:
    assert Model(id="m", **fields).spec().devices == fields["devices"]
