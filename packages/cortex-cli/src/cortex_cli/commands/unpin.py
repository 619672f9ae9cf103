# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex unpin`: let a model be evicted again."""

from cortex_cli.orders import model_command

command = model_command(
    "unpin",
    "Take back a `cortex pin` of the same model and node.",
    node_says="As it was pinned.",
)
