# SPDX-License-Identifier: GPL-3.0-or-later
"""The packages' READMEs name what their package serves, takes and holds: all of it, and nothing else."""

import asyncio
import re
from collections.abc import Iterable, Iterator

import tree
from starlette.routing import Route

from cortex_cli.command import COMMANDS
from cortex_core.catalogue import Catalogue
from cortex_core.http.front import Front
from cortex_gateway.app import open_gateway
from cortex_gateway.config import Config
from cortex_gateway.status import CatalogueStatus
from neuron.harnesses.failures import REFUSED_KINDS
from neuron.host.engines.echo_options import EchoOptions
from neuron.testing import make_config, serve

Routes = set[tuple[str, str]]


def page(package: str) -> str:
    """A package's README."""
    return (tree.PACKAGES / package / "README.md").read_text(encoding="utf-8")


def names(text: str, head: str) -> list[str]:
    """What stands in backticks in the first column of the table that is headed so."""
    table = re.search(rf"^\| {head} \|.*\n((?:\|.*\n)*)", text, re.MULTILINE)
    rows = table[1].splitlines() if table else []
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row.split("|")[1])]


def told(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Method and path of each; a path alone has the method of the one before it."""
    method = ""
    for word in words:
        before, _, path = word.rpartition(" ")
        method = before or method
        yield method, nameless(path)


def nameless(path: str) -> str:
    """A path without the names that its parameters have."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def served(front: Front) -> Routes:
    """Method and path of all that it answers; HEAD goes with each GET."""
    found = {("POST", path) for path in front._hot}
    for route in front._routes:
        assert isinstance(route, Route)
        methods = (route.methods or set()) - {"HEAD"}
        found |= {(method, nameless(route.path)) for method in methods}
    return found


async def gateway_routes() -> Routes:
    """Those of the API's port and of the metrics'."""
    nothing = CatalogueStatus(path="models.toml", found=False, models=0, aliases=0)
    async with open_gateway(Config(), Catalogue(), nothing) as gateway:
        return served(gateway.front) | served(gateway.metrics_front)


async def neuron_routes() -> Routes:
    """Those of its one port."""
    async with serve(make_config()) as neuron:
        return served(neuron.daemon.front)


def test_the_gateway_s_names_each_route() -> None:
    assert set(told(names(page("cortex-gateway"), "route"))) == asyncio.run(gateway_routes())


def test_the_neuron_s_names_each_route() -> None:
    assert set(told(names(page("neuron"), "route"))) == asyncio.run(neuron_routes())


def test_the_command_line_s_names_each_command() -> None:
    typed = names(page("cortex-cli"), "command")
    assert {line.removeprefix("cortex ").split()[0] for line in typed} == set(COMMANDS)


def test_the_neuron_s_names_each_kind_of_refused_load() -> None:
    assert set(names(page("neuron"), "kind")) == REFUSED_KINDS


def test_the_neuron_s_names_each_option_of_an_echo_model() -> None:
    assert set(names(page("neuron"), "option")) == set(EchoOptions.__struct_fields__)


def test_the_core_s_names_each_module_and_which_are_not_pure() -> None:
    is_pure = {
        parts[1]: module.is_pure
        for module in tree.sources()
        if (parts := module.name.split("."))[0] == "cortex_core" and len(parts) == 2
    }
    text = page("cortex-core")
    assert set(names(text, "module")) == is_pure.keys()
    sentence = re.search(r"^Only (.*) touch the world", text, re.MULTILINE)
    told_impure = re.findall(r"`(\w+)`", sentence[1]) if sentence else []
    assert set(told_impure) == {name for name, pure in is_pure.items() if not pure}


def test_the_rules_can_fail() -> None:
    text = "| route | does |\n|---|---|\n| `GET /a`, `/b/{id}` | `/c` |\n\n| `POST /d` | x |\n"
    assert list(told(names(text, "route"))) == [("GET", "/a"), ("GET", "/b/{}")]
    assert names(text, "kind") == []
