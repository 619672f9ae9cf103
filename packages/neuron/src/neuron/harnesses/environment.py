# SPDX-License-Identifier: GPL-3.0-or-later
"""Which environment does an engine host get?"""

import os
from collections.abc import Mapping

from cortex_core import notify

# The sockets to the service manager, and what lets one give orders, are the daemon's alone.
OWN = (*notify.VARIABLES, "NEURON_SECRET")


def environ(changes: Mapping[str, str | None]) -> dict[str, str]:
    """The daemon's own, with changes; None removes a variable."""
    found = {**os.environ, **dict.fromkeys(OWN), **changes}
    return {name: value for name, value in found.items() if value is not None}
