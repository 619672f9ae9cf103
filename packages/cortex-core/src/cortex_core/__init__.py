# SPDX-License-Identifier: GPL-3.0-or-later
"""What cortex and neuron share: the wire, configuration, errors, logs, and HTTP.

The modules of this folder are pure but for `config`, `logs`, `build` and `testing`. What talks HTTP lives
in `cortex_core.http`, which they do not import.
"""
