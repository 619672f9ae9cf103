# SPDX-License-Identifier: GPL-3.0-or-later
"""The neuron daemon: engines on one machine, supervised, behind one HTTP API.

The daemon's own process imports neither vllm nor torch: each engine runs in a host process of its own
(`neuron.host`).
"""
