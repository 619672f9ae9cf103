# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a request goes: the policies by the name that `[gateway] policy` takes. Pure."""

from cortex_gateway.routing.least_busy import least_busy
from cortex_gateway.routing.policy import Policy
from cortex_gateway.routing.round_robin import round_robin

POLICIES: dict[str, Policy] = {"least_busy": least_busy, "round_robin": round_robin}
