# SPDX-License-Identifier: GPL-3.0-or-later
"""A Struct as an HTTP answer."""

import msgspec
from starlette.responses import Response

_ENCODE = msgspec.json.Encoder()


def answer_json(value: msgspec.Struct) -> Response:
    """200, as JSON."""
    return Response(_ENCODE.encode(value), media_type="application/json")
