# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex drain`: send a node nothing new."""

from cortex_cli.orders import node_command

command = node_command(
    "drain",
    "Send a node nothing new, until `cortex undrain` or the gateway's next start; what runs there goes on.",
)
