# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may import whom, and which one module imports an outside library."""

import subprocess
import sys
from pathlib import Path

import pytest
import tree
from tree import Module

SIBLINGS = ("cortex_core", "cortex_gateway", "neuron", "cortex_cli")
# importer: {imported: why not}
FORBIDDEN = {
    "cortex_core": {
        "cortex_gateway": "core is what the others share",
        "neuron": "core is what the others share",
        "cortex_cli": "core is what the others share",
    },
    "cortex_gateway": {
        "neuron": "the two meet on the wire alone, in cortex_core",
        "cortex_cli": "the command line starts the gateway, not the other way round",
        "vllm": "engines live on GPU hosts",
        "torch": "engines live on GPU hosts",
    },
    "neuron": {
        "cortex_gateway": "the two meet on the wire alone, in cortex_core",
        "cortex_cli": "the daemon stands alone",
    },
    "cortex_cli": {
        "cortex_gateway": "imported by name on use: the command line stands on cortex_core alone",
        "neuron": "imported by name on use: the command line stands on cortex_core alone",
    },
}
# Libraries with one home per package, so that changing one changes one file.
HOMES = {
    "hypercorn": {"cortex_core.http.server"},
    "aiohttp": {"cortex_core.http.session"},
    "yarl": {"cortex_core.http.session"},
    # Each end of a connection parses what comes to it: requests, and answers.
    "httptools": {"cortex_core.http.inbound", "cortex_core.http.answer"},
    "uvloop": {"cortex_core.http.server"},
    "structlog": {"cortex_core.logs"},
    "prometheus_client": {"cortex_gateway.metrics", "neuron.metrics"},
    "pynvml": {"neuron.nvml"},
    "huggingface_hub": {"neuron.weights.hub"},
    "httpx2": {"neuron.weights.hub"},
    "click": {"cortex_cli", "neuron.command"},
    "rich": {"cortex_cli"},
}
ENGINE_LIBRARIES = ("vllm", "torch", "transformers", "tokenizers", "safetensors")
# The one folder that runs inside an engine host.
ENGINES = "neuron.host.engines"
HTTP = "cortex_core.http"
# Of the core outside its HTTP folder, only the test kit may know it: the types are used without any HTTP.
HTTP_KNOWN_BY = {"cortex_core.testing"}


def crossings(modules: list[Module]) -> list[str]:
    """Each import that a package must not make."""
    return [
        f"{module} imports {imported}: {why}"
        for module in modules
        for imported in tree.imports(module.tree)
        if (why := FORBIDDEN.get(module.package, {}).get(imported.partition(".")[0]))
    ]


def strays(modules: list[Module]) -> list[str]:
    """Each import of a library outside its home."""
    return [
        f"{module} imports {imported}; its home is {', '.join(sorted(homes))}"
        for module in modules
        for imported in tree.imports(module.tree)
        if (homes := HOMES.get(imported.partition(".")[0])) and not _within(module.name, homes)
    ]


def engine_imports(modules: list[Module]) -> list[str]:
    """Each import of an engine's library outside the engines."""
    return [
        f"{module} imports {imported}"
        for module in modules
        for imported in tree.imports(module.tree)
        if imported.partition(".")[0] in ENGINE_LIBRARIES and not _within(module.name, {ENGINES})
    ]


def http_imports(modules: list[Module]) -> list[str]:
    """Each import of the HTTP folder by the rest of the core."""
    return [
        f"{module} imports {imported}"
        for module in modules
        for imported in tree.imports(module.tree)
        if module.package == "cortex_core"
        and imported.startswith(HTTP)
        and not _within(module.name, {HTTP, *HTTP_KNOWN_BY})
    ]


def _within(name: str, homes: set[str]) -> bool:
    return any(name == home or name.startswith(f"{home}.") for home in homes)


def test_packages_import_only_those_below_them() -> None:
    assert crossings(tree.sources()) == []


def test_outside_libraries_have_one_importer() -> None:
    assert strays(tree.sources()) == [], "changing a library must change one file"


def test_only_engines_import_the_engine() -> None:
    assert engine_imports(tree.sources()) == [], "an engine must never take the daemon down with it"


@pytest.mark.slow
def test_the_daemon_loads_no_engine() -> None:
    names = [
        module.name
        for module in tree.sources()
        if module.package == "neuron"
        and not _within(module.name, {ENGINES})
        and not module.name.endswith("__main__")
    ]
    look = (
        "import importlib, sys\n"
        f"for name in {names}: importlib.import_module(name)\n"
        f"print(*(set({ENGINE_LIBRARIES}) & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False)
    assert (said.stdout.strip(), said.stderr) == ("", ""), "the daemon starts in under a second"


def test_the_core_s_types_know_no_http() -> None:
    assert http_imports(tree.sources()) == [], "the wire types are used by what speaks no HTTP"


def test_the_rules_can_fail() -> None:
    bad = tree.parse(
        "cortex_gateway.loader",
        Path("loader.py"),
        "import neuron.config\nimport aiohttp\nimport torch\n",
    )
    core = tree.parse(
        "cortex_core.node", Path("node.py"), "from cortex_core.http.client import Client\n"
    )
    assert crossings([bad]) == [
        "cortex_gateway.loader imports neuron.config: the two meet on the wire alone, in cortex_core",
        "cortex_gateway.loader imports torch: engines live on GPU hosts",
    ]
    assert strays([bad]) == [
        "cortex_gateway.loader imports aiohttp; its home is cortex_core.http.session"
    ]
    assert engine_imports([bad]) == ["cortex_gateway.loader imports torch"]
    assert http_imports([core]) == ["cortex_core.node imports cortex_core.http.client.Client"]
