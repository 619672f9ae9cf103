# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that is run on this repository: `tools/nox --list` tells. `tools/nox` alone runs all checks.

Most sessions share `.venv`, the one full environment: the four packages as they stand in the tree, the
tools of `constraints.txt`, and for the sessions that need it the engine of `constraints-engine.txt`.
`tests(…)` has an environment per package, with what that package declares and nothing else.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
# pip finds the CPU build of torch where its configuration says; uv does not look there.
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True
nox.options.error_on_missing_interpreters = True
nox.options.sessions = [
    "lint", "types", "tests", "shape", "system", "engine", "faults", "vision", "clients", "docs",
]  # fmt: skip

ROOT = Path(__file__).parent.resolve()
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")

# A package and the siblings it is tested with: those it requires, and those of its extras.
NEEDS = {
    "cortex-core": [],
    "cortex-gateway": ["cortex-core"],
    "neuron": ["cortex-core"],
    "cortex-cli": ["cortex-core", "cortex-gateway", "neuron"],
}
# For tests that wait more than they work: a file at a time on each of two workers.
SIDE_BY_SIDE = ("--numprocesses=2", "--dist=loadfile")
BENCHMARKS = ["neuron", "translation", "decisions", "replay"]
CHECKED = ["packages", "tests", "tools", "noxfile.py"]
ENGINE_LOCK = ROOT / "constraints-engine.txt"
# Left out of the engine's lock: as resolved for the CPU build of vLLM these are built for another torch, and
# `import vllm` dies of them (triton: a gigabyte that a CPU cannot use).
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec", "triton")
# What vision models of the engine want, as released for its torch. Built for CUDA, it needs the help of tests/vision.
TORCHVISION = "torchvision==0.28.0"
# The vendors' libraries as constraints.txt has them, and the majors before those, with what `.venv` has not of their needs.
CLIENTS = {"now": [], "before": ["openai==2.54.0", "anthropic==0.125.0", "distro==1.9.0"]}

NO_ENGINE = """\
The engine (vLLM's CPU build) could not be installed; pip says why, above.

Where it finds no `torch==…+cpu`: that build is not on the public package index. Add the CPU wheel index that
pytorch.org documents, as an extra index of pip (PIP_EXTRA_INDEX_URL, or `pip config set global.extra-index-url`),
or a folder that holds the wheel (PIP_FIND_LINKS), and run the command again.

To see gateway and neuron work without any engine: tools/nox -s up -- --harness echo
That is no model: it answers from the prompt."""


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Formatting and lint, checked only; `fix` writes."""
    _ensure_packages(session)
    _run(session, "ruff", "format", "--check", *CHECKED, "tools/nox")
    _run(session, "ruff", "check", *CHECKED, "tools/nox")


@nox.session(venv_backend="none")
def fix(session: nox.Session) -> None:
    """Formatting and lint, written."""
    _ensure_packages(session)
    _run(session, "ruff", "format", *CHECKED, "tools/nox")
    _run(session, "ruff", "check", "--fix", *CHECKED, "tools/nox")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Mypy, strict: all sources, tools and common tests at once, then each package's tests."""
    _ensure_packages(session)
    sources = [f"packages/{dist}/src" for dist in NEEDS]
    _run(session, "mypy", *sources, "tests", "tools", "noxfile.py", "tools/nox")
    for dist in NEEDS:
        # One by one: equal names in different packages are one module to mypy.
        _run(session, "mypy", f"packages/{dist}/tests", env={"MYPYPATH": f"packages/{dist}"})


@nox.session
@nox.parametrize("dist", list(NEEDS), ids=list(NEEDS))
def tests(session: nox.Session, dist: str) -> None:
    """One package's tests, installed with what it declares and its siblings as they stand in this tree."""
    install = [*_editable(*NEEDS[dist], dist), *_group("test"), "-c", "constraints.txt"]
    stamp = Path(session.virtualenv.location) / "made-from"
    _once(stamp, install, lambda: session.install(*install))
    python = Path(session.virtualenv.location) / "bin/python"
    _pytest(session, python, f"packages/{dist}/tests", *SIDE_BY_SIDE)


@nox.session(venv_backend="none")
def shape(session: nox.Session) -> None:
    """What the repository promises about itself: layering, purity, names, examples, documents."""
    _ensure_packages(session)
    _pytest(session, PYTHON, "tests/shape")


@nox.session(venv_backend="none")
def system(session: nox.Session) -> None:
    """A whole fleet of real processes on echo engines."""
    _ensure_packages(session)
    _pytest(session, PYTHON, "tests/system", *SIDE_BY_SIDE)


@nox.session(venv_backend="none")
def engine(session: nox.Session) -> None:
    """The real engine: vLLM on this machine's CPU, with the demo model."""
    _ensure_engine(session)
    _pytest(session, PYTHON, "tests/engine", *SIDE_BY_SIDE, "--ignore=tests/engine/faults")


@nox.session(venv_backend="none")
def faults(session: nox.Session) -> None:
    """What is done to the real engine's processes, one thing after the other: clients are to hear of it within a second."""
    _ensure_engine(session)
    _pytest(session, PYTHON, "tests/engine/faults")


@nox.session(venv_backend="none")
def vision(session: nox.Session) -> None:
    """The real engine with images as input, in an environment that is `.venv` and a torchvision."""
    _ensure_engine(session)
    helped = [str(ROOT / "tests" / "vision"), "import torchvision_operators"]
    _pytest(session, _ensure_beside(session, "vision", [TORCHVISION], helped), "tests/vision")


@nox.session(venv_backend="none")
@nox.parametrize("majors", list(CLIENTS), ids=list(CLIENTS))
def clients(session: nox.Session, majors: str) -> None:
    """The vendors' own client libraries, as they are now and as they were, against gateway, neuron and engine."""
    _ensure_engine(session)
    packages = CLIENTS[majors]
    python = _ensure_beside(session, f"clients-{majors}", packages, []) if packages else PYTHON
    # The engine has client libraries among its own needs: the daemons stay where those are as it wants them.
    _pytest(session, python, "tests/clients", *SIDE_BY_SIDE, DAEMON_PYTHON=str(PYTHON))


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Whether docs/reference is what the code says; `-- --write` refreshes it."""
    _ensure_packages(session)
    _run(session, "python", "tools/reference.py", *(session.posargs or ["--check"]))


@nox.session(venv_backend="none")
def full(session: nox.Session) -> None:
    """The heavier checks, on top of what plain `tools/nox` runs."""
    session.notify("build")
    session.notify("fresh")
    session.notify("agents")


@nox.session(venv_backend="none")
def agents(session: nox.Session) -> None:
    """The vendors' JavaScript packages, Claude Code and Codex, headless, against a gateway. Needs Node.js and npm."""
    _ensure_packages(session)
    npm = shutil.which("npm")
    if npm is None:
        _not_run(session, "npm is not there; it comes with Node.js")
    home, listed = ROOT / ".nox" / "agents", ROOT / "tests" / "agents" / "package.json"
    options = ["install", "--no-audit", "--no-fund", "--no-package-lock", "--prefix", str(home)]

    def install() -> None:
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(listed, home)
        session.run(str(npm), *options, external=True)

    _once(home / "made-from", options, install, listed)
    _pytest(session, PYTHON, "tests/agents")


@nox.session
def build(session: nox.Session) -> None:
    """Archive and wheel of each package; the wheels installed together in an empty environment."""
    group = [*_group("build"), "-c", "constraints.txt"]
    stamp = Path(session.virtualenv.location) / "made-from"
    _once(stamp, group, lambda: session.install(*group))
    session.run("python", "tools/wheels.py", *session.posargs)


@nox.session(venv_backend="none")
def fresh(session: nox.Session) -> None:
    """The README's first command and curl lines, in a copy of the tree that has nothing installed."""
    _ensure_packages(session)
    _run(session, "python", "tools/fresh.py", *session.posargs)


@nox.session(venv_backend="none")
def up(session: nox.Session) -> None:
    """Gateway and a CPU neuron with the demo model on this machine; `-- --help` lists its options."""
    _ensure_packages(session)
    if not {"echo", "--harness=echo", "--help"} & set(session.posargs):
        _ensure_engine(session)
    sys.stdout.flush()
    # Replaced, not started: nox would give `up` a third of a second to end its daemons before it kills it.
    os.execv(VENV / "bin/cortex", ["cortex", "up", *session.posargs])  # noqa: S606 - our own program


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """How good it is, as ratios: `-- neuron`, and `-- neuron --help` for its options. On a quiet machine only."""
    name, *options = session.posargs or [""]
    if name not in BENCHMARKS:
        session.error(f"which one? Say `-- NAME`; there are: {', '.join(BENCHMARKS)}")
    _ensure_engine(session)
    sys.stdout.flush()
    # Replaced, not started, as in `up`.
    os.execv(PYTHON, [str(PYTHON), str(ROOT / f"tools/bench/{name}.py"), *options])  # noqa: S606 - our own program


@nox.session
def lock(session: nox.Session) -> None:
    """Rewrites both constraints files from the packages' ranges. `-- --upgrade` takes the newest of everything.

    Resolved by uv, which is asked to look where pip's environment variables say, for the CPU build of torch.
    """
    session.install(*_group("lock"), "-c", "constraints.txt")
    pip_to_uv = {
        "PIP_FIND_LINKS": "UV_FIND_LINKS",
        "PIP_EXTRA_INDEX_URL": "UV_INDEX",
        "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    }
    session.env.update({uv: os.environ[pip] for pip, uv in pip_to_uv.items() if pip in os.environ})
    packages = [f"-e packages/{dist}" for dist in NEEDS]
    _compile(session, ENGINE_LOCK.name, [*packages, "-e packages/neuron[cpu]"], LEFT_OUT)
    tools = sorted({line for group in PROJECT["dependency-groups"] for line in _group(group)})
    _compile(session, "constraints.txt", [*packages, *tools, "-c constraints-engine.txt"], ())


def _compile(session: nox.Session, out: str, wanted: list[str], left_out: Iterable[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, override = Path(scratch, "wanted.in"), Path(scratch, "override.in")
        source.write_text(
            "\n".join(
                line.replace("packages/", f"{ROOT}/packages/").replace("-c ", f"-c {ROOT}/")
                for line in wanted
            )
        )
        override.write_text("".join(f'{name}; sys_platform == "never"\n' for name in left_out))
        siblings = [f"--no-emit-package={_distribution(dist)}" for dist in NEEDS]
        session.run(
            "uv", "pip", "compile", str(source), "--override", str(override), "--python-version=3.11",
            "--no-header", "--no-annotate", "--quiet", "--output-file", out, *siblings, *session.posargs,
            silent=True,
        )  # fmt: skip


def _ensure_packages(session: nox.Session) -> None:
    """`.venv` with the four packages and all tools, but no engine. Installs nothing when nothing has changed."""
    if not PYTHON.exists():
        session.run(
            sys.executable, "-m", "virtualenv", "--quiet", "--clear", str(VENV), external=True
        )
    groups = [
        line for group in ("lint", "types", "test", "clients", "build") for line in _group(group)
    ]
    tools = [*groups, "-c", "constraints.txt"]
    packages = ["--no-build-isolation", *_editable(*NEEDS), "-c", "constraints.txt"]

    def install() -> None:
        _pip(session, *tools)  # first, since it brings what builds the packages
        _pip(session, *packages)

    _once(VENV / "made-from", [*tools, *packages], install)


def _ensure_engine(session: nox.Session) -> None:
    """`.venv` with the engine as well. Where pip cannot find it, says what to add."""
    _ensure_packages(session)
    everything = ["--no-deps", "-r", ENGINE_LOCK.name]
    listed = ENGINE_LOCK.read_text().splitlines()
    torch = next(line for line in listed if line.startswith("torch=="))

    def install() -> None:
        _pip(
            session, "--no-deps", torch
        )  # first: the one that pip may not find, before much is fetched
        _pip(session, *everything)

    try:
        _once(VENV / "engine-made-from", everything, install, ENGINE_LOCK)
    except nox.command.CommandFailed:
        session.error(NO_ENGINE)


def _ensure_beside(session: nox.Session, name: str, packages: list[str], lines: list[str]) -> Path:
    """The interpreter of an environment that is `.venv`, with packages of its own before those there.

    `lines` go into a `.pth` file, which every interpreter of it reads.
    """
    home = ROOT / ".nox" / name
    lines = [f"import site; site.addsitedir({str(_site(VENV))!r})", *lines]

    def install() -> None:
        make = ("-m", "venv", "--clear", "--without-pip", str(home))
        session.run(str(PYTHON), *make, external=True)
        _pip(session, "--no-deps", "--target", str(_site(home)), *packages)
        (_site(home) / "engine.pth").write_text("\n".join(lines) + "\n")

    _once(home / "made-from", [*packages, *lines], install)
    return home / "bin" / "python"


def _site(home: Path) -> Path:
    """Where an environment's packages are."""
    return home / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def _pip(session: nox.Session, *args: str) -> None:
    session.run(
        str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", *args, external=True
    )


def _once(stamp: Path, args: Iterable[str], install: Callable[[], object], *sources: Path) -> None:
    """Run `install` unless it ran to its end with these arguments, these files, and the tree in this place.

    The files are `sources`; none: `constraints.txt` and what the packages say of themselves.
    """
    read = sources or (ROOT / "constraints.txt", *sorted(ROOT.glob("packages/*/pyproject.toml")))
    digest = hashlib.sha256("\0".join([str(ROOT), *args]).encode())
    for source in read:
        digest.update(source.read_bytes())
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    stamp.unlink(missing_ok=True)
    install()
    stamp.write_text(digest.hexdigest())


def _pytest(session: nox.Session, python: Path, folder: str, *options: str, **environ: str) -> None:
    if not any((ROOT / folder).glob("**/test_*.py")):
        _not_run(session, f"there are no tests in {folder}")
    args = [str(python), "-m", "pytest", folder, *options, *session.posargs]
    session.run(*args, external=True, env=environ)


def _not_run(session: nox.Session, reason: str) -> None:
    """A check whose part is missing is skipped aloud; where a machine decides (CI=true), that is a failure."""
    if os.environ.get("CI") == "true":
        session.error(f"not run: {reason}")
    session.skip(f"not run: {reason}")


def _run(
    session: nox.Session, command: str, *args: str, env: dict[str, str | None] | None = None
) -> None:
    session.run(str(VENV / "bin" / command), *args, external=True, env=env)


def _editable(*dists: str) -> list[str]:
    return [arg for dist in dists for arg in ("-e", f"packages/{dist}")]


def _group(name: str) -> list[str]:
    return list(nox.project.dependency_groups(PROJECT, name))


def _distribution(dist: str) -> str:
    return f"helexa-{dist}"
