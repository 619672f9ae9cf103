# SPDX-License-Identifier: GPL-3.0-or-later
"""What the gateway answers, route by route."""
