# SPDX-License-Identifier: GPL-3.0-or-later
"""Every field of the request types that both vendors publish, sent once: what goes on without it is named as dropped."""

import collections.abc
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
import pytest
import typing_extensions
from anthropic.types import message_create_params as messages
from anthropic.types.beta import message_create_params as beta_messages
from openai.types.responses import response_create_params as responses

from cortex_core.errors import ClientError
from cortex_gateway.dialects import build_dialects
from cortex_gateway.dialects.responses_chat import ResponsesByChat
from cortex_gateway.dialects.translated import AskedTranslated, TranslatedDialect

pytestmark = pytest.mark.slow

Fields = dict[str, Any]

TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
FUNCTION = {"type": "function", "name": "f"}
# Where another value than the first one says more than what is so anyway.
VALUES: Fields = {"truncation": "auto", "service_tier": "flex", "display": "omitted"}
# What a request has to have beyond what the types say, for the rest to be read at all.
NEEDED: dict[str, Fields] = {
    "document": {"source": {"type": "text", "media_type": "text/plain", "data": "f"}},
    "input_image": {"image_url": "https://a/f.png"},
    "BetaSystemMessageParam": {"content": "f"},
    "function_call_output": {"call_id": "f"},
}
# What is so anyway, or says nothing before its own fields do.
NOTHING: list[Any] = [{}, False, {"type": "direct"}, {"type": "disabled"}, {"type": "text"}]
REQUIRED: Any = typing_extensions.Required
# Blocks that only a turn of the model may hold.
OF_THE_MODEL = ("thinking", "tool_use")
# No model is told of these: docs/dialects.md says so. The last is told again in the answer.
OF_THE_SERVER = ("message", "reasoning", "function_call", "function_call_output")
TAKEN = {
    ("thinking", "signature"),
    *((kind, name) for kind in OF_THE_SERVER for name in ("id", "status")),
    ("", "metadata"),
}
# A field that no type has.
UNKNOWN = "unheard_of"


class Sent(NamedTuple):
    """A request without a field and with it; `path` leads there by names of fields and kinds of objects."""

    path: tuple[str, ...]
    without: Fields
    given: Fields


def options(kind: Any) -> list[Any]:
    """What a published type may be, but for null."""
    kind = getattr(kind, "__value__", kind)
    origin = get_origin(kind)
    if origin in (typing_extensions.Required, typing_extensions.NotRequired):
        return options(get_args(kind)[0])
    if origin is typing_extensions.Annotated:
        return options(get_args(kind)[0])
    if origin is Union or type(kind).__name__ == "UnionType":
        return [one for part in get_args(kind) if part is not type(None) for one in options(part)]
    return [kind]


def inner(kind: Any) -> Any:
    """What a list holds; None: it is none."""
    args = get_args(kind)
    is_list = get_origin(kind) not in (Literal, dict, collections.abc.Mapping) and len(args) == 1
    return args[0] if is_list else None


def hints(kind: Any) -> Fields:
    return typing_extensions.get_type_hints(kind, include_extras=True)


def sample(kind: Any, name: str = "", *, other: bool = False) -> Any:
    """The least value of a type; `other`: another one, where there is one."""
    if typing_extensions.is_typeddict(kind):
        required = {
            field: sample(options(hint)[0], field)
            for field, hint in hints(kind).items()
            if get_origin(hint) is REQUIRED
        }
        return required | NEEDED.get(kind_of(kind), {})
    if get_origin(kind) is Literal:
        values = get_args(kind)
        wanted = VALUES.get(name)
        return wanted if wanted in values else values[-1 if other else 0]
    if (held := inner(kind)) is not None:
        return [sample(options(held)[0], other=other)]
    if kind is bool:
        return not other
    if kind in (int, float):
        return 2 if other else 1
    if kind is str:
        return "g" if other else "f"
    return {"type": "object", "title": "g" if other else "f"}


def kind_of(kind: Any) -> str:
    """The name by which objects of a type are told from others: the word in `type`."""
    hint = hints(kind).get("type")
    words = get_args(options(hint)[0]) if hint is not None else ()
    return str(words[0]) if words else str(kind.__name__)


def walk(
    kind: Any, wrap: Callable[[Any], Fields], path: tuple[str, ...], seen: set[Any]
) -> Iterator[Sent]:
    """Each field of an object, one that it does not have, and those of objects within it, each of these once below its parent."""
    base = sample(kind)
    yield Sent((*path, UNKNOWN), wrap(base), wrap({**base, UNKNOWN: "f"}))
    for name, hint in hints(kind).items():
        here = (*path, name)
        rest = {field: value for field, value in base.items() if field != name}
        for option in options(hint):
            held = inner(option)
            parts = options(held) if held is not None else [option]
            if name in base and not any(map(typing_extensions.is_typeddict, parts)):
                without = wrap({**rest, name: sample(option, name, other=True)})
            else:
                without = wrap(rest)
            value = sample(option, name)
            given = wrap({**rest, name: value})
            if name != "type" and value not in NOTHING and given != without:
                yield Sent(here, without, given)
            for part in filter(typing_extensions.is_typeddict, parts):
                if (kind, part) not in seen:
                    seen.add((kind, part))
                    as_list = held is not None
                    yield from walk(
                        part,
                        lambda value, rest=rest, name=name, as_list=as_list: wrap(  # type: ignore[misc]
                            {**rest, name: [value] if as_list else value}
                        ),
                        (*here, kind_of(part)),
                        seen,
                    )


def as_message(fields: Fields) -> Fields:
    """What a request of Anthropic's needs beside the field in question."""
    asked = {"model": "m", "tools": [TOOL], "max_tokens": 1, "messages": [], **fields}
    turns = asked["messages"]
    if turns and isinstance(turns[0].get("content"), list):
        blocks = [block.get("type") for block in turns[0]["content"]]
        turns = [{**turns[0], "role": "assistant" if blocks[0] in OF_THE_MODEL else "user"}]
    return {**asked, "messages": [*turns, {"role": "user", "content": "on"}]}


def as_response(fields: Fields) -> Fields:
    """What a request of Responses needs beside the field in question."""
    items = fields.get("input", [])
    if isinstance(items, list):
        items = [*items, {"role": "user", "content": "on"}]
    return {"model": "m", "tools": [FUNCTION], **fields, "input": items}


def read(dialect: TranslatedDialect, fields: Fields) -> AskedTranslated | None:
    """None: the client is told that this cannot be carried."""
    try:
        return dialect.read(msgspec.json.encode(fields))
    except ClientError:
        return None


def is_kept(dialect: TranslatedDialect, sent: Sent) -> bool:
    """Whether a field is carried, named or refused, or stands in what is."""
    given, without = read(dialect, sent.given), read(dialect, sent.without)
    if given is None or without is None or given.body != without.body:
        return True
    named = {word.rsplit(".", 1)[-1] for word in given.dropped}
    return given.dropped != without.dropped or not named.isdisjoint({*sent.path, "other"})


APIS: dict[str, tuple[Any, TranslatedDialect, Callable[[Fields], Fields]]] = {
    "messages": (messages.MessageCreateParamsNonStreaming, build_dialects()["/v1/messages"], as_message),  # type: ignore[dict-item]
    "beta messages": (beta_messages.MessageCreateParamsNonStreaming, build_dialects()["/v1/messages"], as_message),  # type: ignore[dict-item]
    "responses": (responses.ResponseCreateParamsNonStreaming, ResponsesByChat(), as_response),
}  # fmt: skip


@pytest.mark.parametrize("api", APIS)
def test_no_published_field_is_silently_lost(api: str) -> None:
    kind, dialect, wrap = APIS[api]
    sent = list(walk(kind, wrap, (), set()))
    lost = [one for one in sent if not is_kept(dialect, one)]
    assert len(sent) > 500
    assert {".".join(one.path) for one in lost if ("", *one.path)[-2:] not in TAKEN} == set()
