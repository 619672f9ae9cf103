# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex pin`: keep a model from being evicted."""

from cortex_cli.orders import model_command

command = model_command(
    "pin",
    "Keep a model from being evicted, until `cortex unpin` or the gateway's next start; it is not moved by this.",
    node_says="Only there; else everywhere.",
)
