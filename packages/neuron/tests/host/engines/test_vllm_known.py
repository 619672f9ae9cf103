# SPDX-License-Identifier: GPL-3.0-or-later
"""Which fields a type has, and those of the objects in these."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Required, TypedDict

from neuron.host.engines.vllm_known import read_known


class Url(TypedDict):
    url: str


class Image(TypedDict, total=False):
    type: Required[Literal["image"]]
    image: Required[Url | str]


class Text(TypedDict):
    type: Literal["text"]
    text: str


class Message(TypedDict, total=False):
    content: Required[str | Iterable[Text | Image] | None]
    tags: list[str]
    notes: dict[str, str]
    either: Text | dict[str, Any]
    before: list["Message"]
    said: Annotated[list[Text] | None, "as it was"]


def test_what_is_known_is_what_the_types_of_a_field_have_together() -> None:
    text = {"type": None, "text": None}
    assert read_known([Message]) == {
        "content": {**text, "image": {"url": None}},
        "tags": None,
        "notes": None,
        "either": None,
        "before": None,
        "said": text,
    }
    assert read_known([Text, Image]) == {**text, "image": {"url": None}}
