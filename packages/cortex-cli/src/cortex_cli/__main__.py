# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m cortex_cli` is `cortex`."""

from cortex_cli.command import main

main(prog_name="cortex")
