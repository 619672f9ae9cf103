# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex sleep`: put a model to sleep."""

from cortex_cli.orders import model_command

command = model_command(
    "sleep",
    "Put a model to sleep, with its weights in host memory, when its requests have ended.",
    node_says="Only there; else on each node that has it.",
)
