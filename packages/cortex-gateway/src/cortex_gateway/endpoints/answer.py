# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON as an HTTP answer."""

import msgspec
from starlette.responses import Response

_ENCODE = msgspec.json.Encoder()


def answer_json(value: msgspec.Struct) -> Response:
    """200, as JSON."""
    return answer_body(_ENCODE.encode(value))


def answer_body(body: bytes) -> Response:
    """200, with a body that is JSON already."""
    return Response(body, media_type="application/json")
