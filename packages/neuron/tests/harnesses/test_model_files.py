# SPDX-License-Identifier: GPL-3.0-or-later
from pathlib import Path

import pytest

from cortex_core.control import ModelSpec
from cortex_core.errors import LoadRefusedError
from neuron import demo
from neuron.config import VllmSettings
from neuron.harnesses.model_files import ModelFiles, weights_mb


def locate(model_id: str, tmp_path: Path, own: tuple[str, ...] = ()) -> Path:
    settings = VllmSettings(model_dirs=[str(tmp_path / "models")], hf_cache=str(tmp_path / "hub"))
    return ModelFiles(settings, set(own), {}).locate(ModelSpec(model_id=model_id))


def make_cached(tmp_path: Path, *commits: str, main: str | None = None) -> Path:
    repo = tmp_path / "hub" / "models--org--name"
    for commit in commits:
        (repo / "snapshots" / commit).mkdir(parents=True)
    if main:
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(f"{main}\n")
    return repo / "snapshots"


def test_the_demo_model_comes_with_the_package(tmp_path: Path) -> None:
    assert locate("helexa/demo", tmp_path) == demo.path()


def test_a_directory_of_models_comes_before_the_cache(tmp_path: Path) -> None:
    snapshots = make_cached(tmp_path, "abc", main="abc")
    assert locate("org/name", tmp_path) == snapshots / "abc"
    (tmp_path / "models/org/name").mkdir(parents=True)
    assert locate("org/name", tmp_path) == tmp_path / "models/org/name"
    assert locate("huggingface:org/name", tmp_path) == tmp_path / "models/org/name"


def test_the_cache_is_read_as_the_libraries_write_it(tmp_path: Path) -> None:
    snapshots = make_cached(tmp_path, "abc", "def", main="def")
    assert locate("org/name", tmp_path) == snapshots / "def"


def test_the_only_snapshot_will_do_and_of_two_neither(tmp_path: Path) -> None:
    snapshots = make_cached(tmp_path, "abc")
    assert locate("org/name", tmp_path) == snapshots / "abc"
    make_cached(tmp_path, "def")
    with pytest.raises(LoadRefusedError):
        locate("org/name", tmp_path)


@pytest.mark.parametrize(
    ("environ", "hub"),
    [
        ({"HF_HUB_CACHE": "hub"}, "hub"),
        ({"HF_HOME": "home"}, "home/hub"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/huggingface/hub"),
        ({"HF_HUB_CACHE": "hub", "HF_HOME": "home"}, "hub"),
    ],
)
def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, environ: dict[str, str], hub: str
) -> None:
    snapshot = tmp_path / hub / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    absolute = {name: str(tmp_path / value) for name, value in environ.items()}
    files = ModelFiles(VllmSettings(), set(), absolute)
    assert files.locate(ModelSpec(model_id="org/name")) == snapshot


def test_only_neuron_toml_may_name_a_path(tmp_path: Path) -> None:
    path = str(tmp_path)
    assert locate(path, tmp_path, own=(path,)) == tmp_path
    with pytest.raises(LoadRefusedError, match=r"neuron\.toml only"):
        locate(path, tmp_path)


@pytest.mark.parametrize(
    "model_id",
    ["../models", "org/../../etc", "/etc", "org//name", "a b", "org/name/", "huggingface:../x/y"],
)
def test_an_id_never_leads_out_of_the_directories(tmp_path: Path, model_id: str) -> None:
    with pytest.raises(LoadRefusedError) as caught:
        locate(model_id, tmp_path)
    assert caught.value.facts["load_kind"] == "invalid_spec"


def test_what_is_nowhere_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(LoadRefusedError) as caught:
        locate("org/name", tmp_path)
    assert caught.value.facts["load_kind"] == "repo_fetch_failed"
    assert f"{tmp_path}/models/org/name" in caught.value.message
    assert "models--org--name" in caught.value.message
    with pytest.raises(LoadRefusedError, match="no source 'other'"):
        locate("other:org/name", tmp_path)


def test_weights_are_as_large_as_their_files(tmp_path: Path) -> None:
    with pytest.raises(LoadRefusedError) as caught:
        weights_mb(tmp_path, "m")
    assert caught.value.facts["load_kind"] == "empty_repo"
    (tmp_path / "model-1.safetensors").write_bytes(bytes(1024 * 1024))
    (tmp_path / "model-2.safetensors").write_bytes(b"x")
    assert weights_mb(tmp_path, "m") == 2
