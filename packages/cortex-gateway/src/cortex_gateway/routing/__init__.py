# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a request goes: the policies by the name that `[gateway] policy` takes. Pure."""

from collections.abc import Callable

from cortex_gateway.routing.least_busy import least_busy
from cortex_gateway.routing.policy import Policy
from cortex_gateway.routing.round_robin import round_robin
from cortex_gateway.routing.session_affinity import session_affinity

POLICIES: dict[str, Policy] = {"least_busy": least_busy, "round_robin": round_robin}
# Those that ask whose conversation a request is; the others cost nothing for that.
SESSION_POLICIES: dict[str, Callable[[Callable[[], int]], Policy]] = {
    "session_affinity": session_affinity
}
POLICY_NAMES = sorted([*POLICIES, *SESSION_POLICIES])
