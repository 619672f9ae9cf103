# SPDX-License-Identifier: GPL-3.0-or-later
"""What gateway and neuron agree on beside the types: versions, header names, ports.

WIRE_VERSION counts changes that the other side must know of. New fields have defaults and change nothing: of an answer
those that are not known are passed over; of an order they are refused, and one at its default is not sent.

    1   2026-11-21   the first

Pure.
"""

WIRE_VERSION = 1

GATEWAY_PORT = 31313
METRICS_PORT = 31314
NEURON_PORT = 13131

# In and out of both daemons.
REQUEST_ID = "x-request-id"

# Out of the gateway.
NODE = "x-cortex-node"
MODEL = "x-cortex-model"
DECISION = "x-cortex-decision"
OVERHEAD_MS = "x-cortex-overhead-ms"
DROPPED = "x-cortex-dropped"

# From the gateway to a neuron: end a stream with the SSE comment `: usage {json}`, which the gateway takes out.
USAGE = "x-cortex-usage"
USAGE_COMMENT = b": usage "

# From the gateway to a neuron: on whose behalf. Those who wait for one model take turns by it; absent: anonymous.
PRINCIPAL = "x-cortex-principal"

# Where a gateway has a neuron count the tokens of a prompt for a model that need not be up: a control.CountRequest.
COUNT_PATH = "/models/count"

# From a client, for the neuron: put reasoning back into `content`, between its markers.
INCLUDE_THINKING = "x-include-thinking"
