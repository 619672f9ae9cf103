# SPDX-License-Identifier: GPL-3.0-or-later
"""Which images and other media a request carries, and whether they may be looked at. Pure.

vLLM fetches any URL that it is given, as long as no list of domains is set: a client could have this machine ask
others in its network.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from cortex_core.errors import InvalidRequestBodyError

# The fields that hold what is said; tools and options are not looked through.
_SAID = frozenset(
    """
    messages input query queries documents items data_1 data_2 text_1 text_2
    """.split()
)
_SEEN_PARTS = frozenset({"image", "image_url", "input_image", "image_embeds", "video", "video_url"})
_SEEN_FIELDS = ("image_url", "video_url")
_URL_FIELDS = (*_SEEN_FIELDS, "audio_url")
_FETCHED = ("http", "https")


def has_image(fields: Mapping[str, Any]) -> bool:
    """Whether something that is said carries an image, or a video, which is many."""
    return any(
        any(part.get(name) is not None for name in _SEEN_FIELDS)
        or (isinstance(kind := part.get("type"), str) and kind in _SEEN_PARTS)
        for part in _parts(fields)
    )


def check_urls(fields: Mapping[str, Any], allowed_domains: list[str]) -> None:
    """Refuse media that would be fetched from elsewhere than the operator allows.

    Raises:
        InvalidRequestBodyError: a URL is neither `data:` nor of an allowed domain. The client's fault.
    """
    for part in _parts(fields):
        for name in _URL_FIELDS:
            found = part.get(name)
            url = found.get("url") if isinstance(found, Mapping) else found
            if isinstance(url, str) and not _may_be_read(url, allowed_domains):
                raise InvalidRequestBodyError(reason=_refusal(url, allowed_domains), param=name)


def _parts(fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every object within what is said, however deep it lies."""
    rest = [value for name, value in fields.items() if name in _SAID]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest += value
        elif isinstance(value, Mapping):
            yield value
            rest += value.values()


def _may_be_read(url: str, allowed_domains: list[str]) -> bool:
    if not url or url[:5].lower() == "data:":
        return True
    try:
        found = urlsplit(url)
        return found.scheme in _FETCHED and found.hostname in allowed_domains
    except ValueError:  # brackets that are no address
        return False


def _refusal(url: str, allowed_domains: list[str]) -> str:
    scheme = url.partition(":")[0][:16]
    allowed = ", ".join(allowed_domains)
    if scheme.lower() not in _FETCHED:
        return f"media is taken as a `data:` URI, and not by `{scheme}:`"
    if not allowed:
        return (
            "media is taken as a `data:` URI only; nothing is fetched from elsewhere "
            "(`allowed_media_domains` in neuron.toml)"
        )
    return f"media is fetched from {allowed} only, or taken as a `data:` URI"
