# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine host: a process that runs one engine for one model, and serves it on a unix socket.

Started by the daemon as `python -m neuron.host`. It reads one Start from standard input, writes messages as
lines of JSON to what was its standard output, and ends itself and its children when standard input closes.
"""
