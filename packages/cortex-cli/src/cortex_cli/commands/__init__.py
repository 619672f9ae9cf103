# SPDX-License-Identifier: GPL-3.0-or-later
"""One module per command of `cortex`, each with a click command named `command`."""
