# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of models: which sources they come from, what of them is on disk, and how they get there.

`choosing`, `quants`, `room` and `rate` think; `store` owns; `downloads` runs one child process per download, whose
program is `fetch`. Only that child knows the hub's library, so a download can be ended, and can end nothing else.
"""
