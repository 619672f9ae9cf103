# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of the other packages, imported when they are used: the CLI stands on `cortex_core` alone."""

import importlib
import importlib.util
from typing import Any

from cortex_core.errors import OperatorError


def load(module: str, attribute: str, distribution: str) -> Any:
    """A public name of a package that may not be installed.

    Raises:
        OperatorError: it is not; the message names what to install.
    """
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # the package is there, and at fault
        raise OperatorError(
            message=f"This needs the package {distribution}, which is not installed: pip install {distribution}."
        ) from None
    return getattr(found, attribute)


def has(module: str) -> bool:
    """Whether a top-level module could be imported. Imports nothing."""
    return importlib.util.find_spec(module) is not None
