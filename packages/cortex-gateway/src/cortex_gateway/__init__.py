# SPDX-License-Identifier: GPL-3.0-or-later
"""The gateway: many nodes as one OpenAI and Anthropic API."""
