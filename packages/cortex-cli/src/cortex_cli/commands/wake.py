# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex wake`: have a sleeping model up again."""

from cortex_cli.orders import model_command

command = model_command(
    "wake",
    "Have a sleeping model serve again; others make room where they may.",
    node_says="Only there; else on each node that has it.",
)
