# SPDX-License-Identifier: GPL-3.0-or-later
"""Which environment does an engine host get?"""

import os
from collections.abc import Mapping

from neuron import notify


def environ(changes: Mapping[str, str | None]) -> dict[str, str]:
    """The daemon's own, with changes; None removes a variable."""
    # The sockets to the service manager are the daemon's alone.
    found = {**os.environ, **dict.fromkeys(notify.VARIABLES), **changes}
    return {name: value for name, value in found.items() if value is not None}
