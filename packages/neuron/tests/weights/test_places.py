# SPDX-License-Identifier: GPL-3.0-or-later
from pathlib import Path

import pytest

from neuron import demo
from neuron.config import SourceSettings, VllmSettings
from neuron.weights.places import Place, Places
from neuron.weights.refusals import WeightsError
from neuron.weights.sources import Sources

OTHER = {"other": SourceSettings(endpoint="http://other")}


def places(tmp_path: Path, own: tuple[str, ...] = ()) -> Places:
    settings = VllmSettings(
        model_dirs=[str(tmp_path / "models")], hf_cache=str(tmp_path / "hub"), sources=OTHER
    )
    return Places(settings, Sources(settings, {}), set(own))


def look(model_id: str, tmp_path: Path, *own: str) -> Place:
    return places(tmp_path, own).look(model_id)


def test_the_demo_model_comes_with_the_package(tmp_path: Path) -> None:
    assert look("helexa/demo", tmp_path).fixed == demo.path()
    assert look("other:helexa/demo", tmp_path).fixed is None


def test_a_directory_of_models_comes_before_the_cache(tmp_path: Path) -> None:
    assert look("org/name", tmp_path).fixed is None
    assert look("org/name", tmp_path).folder == tmp_path / "hub" / "models--org--name"
    (tmp_path / "models/org/name").mkdir(parents=True)
    for model_id in ("org/name", "huggingface:org/name", "other:org/name"):
        assert look(model_id, tmp_path).fixed == tmp_path / "models/org/name"


def test_an_id_is_one_whether_its_scheme_is_said_or_not(tmp_path: Path) -> None:
    assert look("org/name", tmp_path).id == look("huggingface:org/name", tmp_path).id
    assert look("other:org/name", tmp_path).folder == tmp_path / "hub-other" / "models--org--name"


def test_only_neuron_toml_may_name_a_path(tmp_path: Path) -> None:
    path = str(tmp_path)
    assert look(path, tmp_path, path).fixed == tmp_path
    with pytest.raises(WeightsError) as caught:
        look(path, tmp_path)
    assert "neuron.toml only" in caught.value.suggestion


@pytest.mark.parametrize(
    "model_id",
    ["../models", "org/../../etc", "/etc", "org//name", "a b", "org/name/", "huggingface:../x/y"],
)
def test_an_id_never_leads_out_of_the_directories(tmp_path: Path, model_id: str) -> None:
    with pytest.raises(WeightsError) as caught:
        look(model_id, tmp_path)
    assert caught.value.kind == "invalid_spec"


def test_what_the_operator_put_there_is_listed(tmp_path: Path) -> None:
    for name in ("org/name", "flat"):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (tmp_path / "models/org/name/model.safetensors").write_bytes(b"x")
    (tmp_path / "models/org/name/tokenizer.json").write_bytes(b"x")
    (tmp_path / "models/empty").mkdir()
    listed = {state.id: state.complete for state in places(tmp_path).scan_fixed()}
    assert listed == {"helexa/demo": True, "flat": False, "org/name": True}
