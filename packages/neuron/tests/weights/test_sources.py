# SPDX-License-Identifier: GPL-3.0-or-later
from pathlib import Path

import pytest

from cortex_core.sources import read_model_name
from neuron.config import SourceSettings, VllmSettings
from neuron.weights.refusals import WeightsError
from neuron.weights.sources import Source, Sources

MIRROR = SourceSettings(endpoint="https://mirror.lan/hub/", auth_env="MIRROR_TOKEN")


def build(environ: dict[str, str] | None = None, **settings: object) -> Sources:
    return Sources(VllmSettings(**settings), {} if environ is None else environ)  # type: ignore[arg-type]  # settings of a test


def find(sources: Sources, model_id: str) -> Source:
    return sources.find(read_model_name(model_id))


def test_hugging_face_is_always_there() -> None:
    source = find(build(), "org/name")
    assert (source.scheme, source.endpoint, source.auth_env) == (
        "huggingface",
        "https://huggingface.co",
        "HF_TOKEN",
    )
    assert (
        find(build({"HF_ENDPOINT": "http://near/"}), "huggingface:org/name").endpoint
        == "http://near"
    )


@pytest.mark.parametrize(
    ("environ", "hub"),
    [
        ({"HF_HUB_CACHE": "/hub"}, "/hub"),
        ({"HF_HOME": "/home"}, "/home/hub"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/huggingface/hub"),
        ({"HF_HUB_CACHE": "/hub", "HF_HOME": "/home"}, "/hub"),
    ],
)
def test_its_cache_is_where_the_environment_says(environ: dict[str, str], hub: str) -> None:
    assert find(build(environ), "org/name").cache_dir == Path(hub)


def test_a_source_has_a_cache_of_its_own() -> None:
    sources = build(hf_cache="/c/hub", sources={"mirror": MIRROR}, default_source="mirror")
    mirror = find(sources, "org/name")
    assert mirror == find(sources, "mirror:org/name")
    assert mirror.cache_dir == Path("/c/hub-mirror")
    assert mirror.endpoint == "https://mirror.lan/hub"
    assert find(sources, "huggingface:org/name").cache_dir == Path("/c/hub")
    own = SourceSettings(endpoint="http://a", cache_dir="/elsewhere")
    assert find(build(sources={"mirror": own}), "mirror:a/b").cache_dir == Path("/elsewhere")
    set_here = build(hf_cache="/c", sources={"huggingface": SourceSettings(cache_dir="/d")})
    assert find(set_here, "a/b").cache_dir == Path("/d")


def test_tokens_are_taken_out_of_the_environment() -> None:
    environ = {
        "HF_TOKEN": "one",
        "MIRROR_TOKEN": " two\n",
        "HUGGING_FACE_HUB_TOKEN": "three",
        "PATH": "/bin",
    }
    sources = build(environ, sources={"mirror": MIRROR})
    assert environ == {"PATH": "/bin"}
    assert sources.token(find(sources, "a/b")) == "one"
    assert sources.token(find(sources, "mirror:a/b")) == "two"
    assert build().token(find(build(), "a/b")) is None


def test_an_unknown_source_is_told_with_the_nearest() -> None:
    sources = build(sources={"mirror": MIRROR})
    with pytest.raises(WeightsError) as caught:
        find(sources, "miror:org/name")
    assert str(caught.value) == "there is no source 'miror' here"
    assert (
        "Did you mean `mirror:org/name`? Known are: huggingface, mirror;" in caught.value.suggestion
    )
    with pytest.raises(WeightsError) as caught:
        find(sources, "zz:org/name")
    assert caught.value.suggestion.startswith("Known are")
