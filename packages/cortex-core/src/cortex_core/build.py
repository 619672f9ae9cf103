# SPDX-License-Identifier: GPL-3.0-or-later
"""What is running: versions of packages, interpreter and source."""

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import msgspec

DISTRIBUTIONS = (
    "helexa-cortex-core",
    "helexa-cortex-gateway",
    "helexa-neuron",
    "helexa-cortex-cli",
)
# Packagers set it, since a tarball has no repository: `CORTEX_GIT_SHA` at run time.
SHA_VARIABLE = "CORTEX_GIT_SHA"


class BuildIdentity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer of GET /version. `packages` holds what is installed; `git_sha` is never empty.

    `vllm`, `torch` and `cuda` are of the engine's environment; None: not known, or none.
    """

    packages: dict[str, str]
    git_sha: str
    python: str
    vllm: str | None = None
    torch: str | None = None
    cuda: str | None = None


def version_of(distribution: str) -> str:
    """The installed version; `unknown` where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


@cache
def identity() -> BuildIdentity:
    """Who is running, read once."""
    versions = {name: version_of(name) for name in DISTRIBUTIONS}
    return BuildIdentity(
        packages={name: version for name, version in versions.items() if version != "unknown"},
        git_sha=os.environ.get(SHA_VARIABLE) or _sha_of_checkout() or "unknown",
        python=platform.python_version(),
    )


def _sha_of_checkout() -> str | None:
    """The commit of the checkout that this file is in; None: installed from a wheel, or no git."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=2,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
