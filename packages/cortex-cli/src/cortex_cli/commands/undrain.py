# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex undrain`: use a node again."""

from cortex_cli.orders import node_command

command = node_command("undrain", "Use a drained node again.")
