# SPDX-License-Identifier: GPL-3.0-or-later
from pathlib import Path

import pytest
from click.testing import CliRunner

from cortex_cli.command import main
from cortex_cli.commands.check import kind_of
from cortex_core.errors import OperatorError


def check(path: Path, *words: str) -> tuple[int, str]:
    answer = CliRunner().invoke(main, ["check", str(path), *words])
    return answer.exit_code, answer.output.replace(f"{path.parent}/", "")


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_good_catalogue_is_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path, "models.toml", '[[models]]\nid = "a"\n[[models]]\nid = "b"\n[aliases]\nc = "a"\n'
    )
    assert check(path) == (0, "models.toml: a valid model catalogue (models: 2, aliases: 1).\n")


def test_a_wrong_catalogue_is_told_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "models.toml", '[[models]]\nid = "a"\nquantt = "int4"\n')
    code, said = check(path)
    assert code == 2
    assert "models.toml, line 3: unknown key `models[0].quantt`. Did you mean `quant`?" in said


@pytest.mark.parametrize(
    ("fallbacks", "told"),
    [
        ('a = ["bb"]', "line 6: `fallbacks.a`: `fallbacks` has 'bb', which is neither"),
        (
            'a = ["b"]\nb = ["a"]',
            "line 6: `fallbacks.a`: `fallbacks` goes in a circle: a -> b -> a",
        ),
        ('a = "b"', "line 5: `fallbacks`: Expected `array`, got `str`"),
    ],
)
def test_wrong_fallbacks_are_told_with_their_line(
    tmp_path: Path, fallbacks: str, told: str
) -> None:
    text = f'[[models]]\nid = "a"\n[[models]]\nid = "b"\n[fallbacks]\n{fallbacks}\n'
    code, said = check(write(tmp_path, "models.toml", text))
    assert code == 2
    assert told in said


def test_a_gateway_s_catalogue_is_checked_with_it(tmp_path: Path) -> None:
    path = write(
        tmp_path, "cortex.toml", '[[neurons]]\nname = "a"\nendpoint = "http://127.0.0.1:1"\n'
    )
    code, said = check(path)
    assert code == 0, said
    assert "cortex.toml: a valid gateway configuration (neurons: 1).\n" in said
    assert "models.toml: not there" in said
    write(tmp_path, "models.toml", "[[models]]\n")
    code, said = check(path)
    assert code == 2
    assert "lacks the key `id`" in said


def test_what_is_likely_not_meant_is_told_and_no_mistake(tmp_path: Path) -> None:
    text = 'default_model = "nosuch"\n[[neurons]]\nname = "a"\nendpoint = "http://a"\n'
    path = write(tmp_path, "cortex.toml", text)
    write(tmp_path, "models.toml", '[[models]]\nid = "m"\npinned_on = ["zz"]\n')
    code, said = check(path)
    assert code == 0
    assert said.splitlines()[2:] == [
        "Warning: `default_model` is 'nosuch', which no catalogue declares: it is served where a node has it.",
        "Warning: the model 'm' is pinned on 'zz', which is none of the nodes a.",
    ]


def test_a_neuron_s_configuration_is_checked(tmp_path: Path) -> None:
    assert check(write(tmp_path, "neuron.toml", "port = 1313\n")) == (
        0,
        "neuron.toml: a valid neuron configuration (harnesses: 1).\n",
    )
    code, said = check(write(tmp_path, "neuron.toml", "prot = 1313\n"))
    assert code == 2
    assert "Did you mean `port`?" in said


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[gateway]\n", "gateway"),
        ("[aliases]\n", "catalogue"),
        ("[[harnesses]]\nname = 'echo'\n", "neuron"),
    ],
)
def test_content_tells_what_the_name_does_not(tmp_path: Path, text: str, kind: str) -> None:
    assert kind_of(write(tmp_path, "mine.toml", text)) == kind


def test_what_cannot_be_told_must_be_said(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.toml", "")
    with pytest.raises(OperatorError, match="Say --kind gateway, catalogue, neuron"):
        kind_of(path)
    assert check(path, "--kind", "catalogue") == (0, "mine.toml: a valid model catalogue.\n")


@pytest.mark.parametrize("name", ["models.toml", "mine.toml"])
def test_a_missing_file_is_told(tmp_path: Path, name: str) -> None:
    code, said = check(tmp_path / name)
    assert (code, said) == (2, f"Error: The file {name} does not exist.\n")


def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path) -> None:
    code, said = check(write(tmp_path, "models.toml", "[[models]\n"))
    assert code == 2
    assert "is not valid TOML" in said
    assert "line 1" in said
