# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP that both daemons share: serve, ask upstream, relay. The pure modules of the package do not import it.

`server` is the only importer of hypercorn, `session` of aiohttp. Both stand behind interfaces of ours (ASGI, and
`Client` with `Reply`), so that a faster filling can take their place.
"""
