# SPDX-License-Identifier: GPL-3.0-or-later
"""Where is the demo model, `helexa/demo`? Its files lie beside this one; README.md tells of it."""

from pathlib import Path


def path() -> Path:
    """The folder that holds the model's weights, configuration and tokenizer."""
    return Path(__file__).parent
