# SPDX-License-Identifier: GPL-3.0-or-later
"""What `cortex up` does: a gateway and a neuron on this machine, from nothing to a token, and away again.

`plan` says what is started and what there is to try, `daemons` starts and ends it, `bringup` waits for the token,
`screen` shows how far it is.
"""
