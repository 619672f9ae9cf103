# SPDX-License-Identifier: GPL-3.0-or-later
"""What is running is never unnamed."""

from cortex_core import build


def test_the_identity_names_this_package_and_a_sha() -> None:
    identity = build.identity()
    assert identity.packages["helexa-cortex-core"] == build.version_of("helexa-cortex-core")
    assert identity.git_sha
    assert identity.python.startswith("3.")


def test_what_is_not_installed_has_no_version() -> None:
    assert build.version_of("no-such-distribution") == "unknown"
