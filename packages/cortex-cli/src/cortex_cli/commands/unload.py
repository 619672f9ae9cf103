# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex unload`: take a model down."""

from cortex_cli.orders import model_command

command = model_command(
    "unload",
    "Take a model down, when its requests have ended.",
    node_says="Only there; else on each node that has it.",
)
