# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex load`: have a model up."""

from cortex_cli.orders import model_command

command = model_command(
    "load",
    "Have a model loaded or woken; others make room where they may. Exit code 1 where there is no room, with the reason.",
    node_says="There; else on the best node.",
)
