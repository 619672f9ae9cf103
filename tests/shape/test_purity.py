# SPDX-License-Identifier: GPL-3.0-or-later
"""Thinking and doing live in different files: what says `Pure.` does no I/O, and what must be pure says so."""

import fnmatch
from pathlib import Path

import tree
from tree import Module

REASON = "pure modules are tested with plain tables, and decide the same whenever they are asked"
# Each of these is I/O, a clock, chance, or logging.
IMPURE = """
aiohttp asyncio click concurrent http httpx2 huggingface_hub hypercorn logging multiprocessing nvidia os pathlib prometheus_client pynvml random
requests secrets selectors shutil signal socket sqlite3 ssl starlette structlog subprocess sys tempfile threading time
torch tomllib urllib.request uuid uvloop vllm yarl
""".split()
# What DESIGN calls thinking: parsing, translation, routing, placement, eviction, lifecycle tables, usage.
MUST_BE_PURE = """
cortex_core.catalogue cortex_core.control cortex_core.discovery cortex_core.errors cortex_core.harness cortex_core.http.address cortex_core.http.answer
cortex_core.http.headers cortex_core.node cortex_core.openai cortex_core.sources cortex_core.sse cortex_core.weights cortex_core.wire
cortex_gateway.dialects.* cortex_gateway.routing.* cortex_gateway.fleet cortex_gateway.view cortex_gateway.placement cortex_gateway.eviction
cortex_gateway.usage
neuron.lifecycle neuron.admission neuron.costs neuron.room neuron.host.engine neuron.host.messages
neuron.harnesses.estimating neuron.harnesses.figures neuron.harnesses.making_room neuron.harnesses.placing
neuron.harnesses.shortages
neuron.weights.choosing neuron.weights.messages neuron.weights.quants neuron.weights.rate neuron.weights.room
cortex_cli.render cortex_cli.view cortex_cli.trial.plan
""".split()
# A module, and what it may import though that is not pure, since it needs no more than the type.
TYPES_ONLY = {("neuron.host.engine", "cortex_core.http.front")}


def impurities(modules: list[Module]) -> list[str]:
    """Each import by which a pure module is not pure, itself or through a module of ours."""
    by_name = {module.name: module for module in modules}
    found = []
    for module in modules:
        if module.is_pure:
            for imported in tree.imports(module.tree):
                if any(f"{imported}.".startswith(f"{name}.") for name in IMPURE):
                    found.append(f"{module} imports {imported}")
                ours = by_name.get(imported) or by_name.get(imported.rpartition(".")[0])
                if (
                    ours
                    and not ours.is_pure
                    and not _is_package(ours)
                    and (module.name, ours.name) not in TYPES_ONLY
                ):
                    found.append(f"{module} imports {ours.name}, which is not pure")
    return found


def _is_package(module: Module) -> bool:
    return module.path.name == "__init__.py"


def silent(modules: list[Module]) -> list[str]:
    """Each module that must be pure and does not say so."""
    return [
        str(module)
        for module in modules
        if any(fnmatch.fnmatch(module.name, pattern) for pattern in MUST_BE_PURE)
        and not module.is_pure
        and not _is_package(module)
    ]


def test_pure_modules_import_nothing_that_acts() -> None:
    assert impurities(tree.sources()) == [], REASON


def test_thinking_modules_say_that_they_are_pure() -> None:
    assert silent(tree.sources()) == [], REASON


def test_the_rules_can_fail() -> None:
    clock = tree.parse("cortex_core.sse", Path("sse.py"), '"""Pure."""\nimport time\n')
    through = tree.parse(
        "cortex_core.wire", Path("wire.py"), '"""Pure."""\nfrom cortex_core.config import T\n'
    )
    config = tree.parse("cortex_core.config", Path("config.py"), '"""Reads files."""\nimport os\n')
    mute = tree.parse("cortex_core.node", Path("node.py"), '"""Says nothing of it."""\n')
    assert impurities([clock, through, config]) == [
        "cortex_core.sse imports time",
        "cortex_core.wire imports cortex_core.config, which is not pure",
    ]
    assert silent([mute, config]) == ["cortex_core.node"]
