# SPDX-License-Identifier: GPL-3.0-or-later
"""Where models come from: the sources of neuron.toml, their caches, and their tokens."""

import difflib
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

import msgspec

from cortex_core import logs
from cortex_core.sources import ModelName
from neuron.config import HUGGINGFACE, SourceSettings, VllmSettings
from neuron.weights.refusals import WeightsError

log = logs.get(__name__)

ENDPOINT = "https://huggingface.co"
AUTH_ENV = "HF_TOKEN"
# Names that the hub's library reads tokens from by itself: no engine has any use for them.
_OTHER_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One source, all of it decided.

    Attributes:
        scheme: what ids of it begin with.
        endpoint: its address, without a slash at its end.
        auth_env: the variable that its token was in; None: it takes none.
        cache_dir: where its models are kept.
    """

    scheme: str
    endpoint: str
    auth_env: str | None
    cache_dir: Path


class Sources:
    """The sources of one daemon, and their tokens.

    Takes the tokens out of `environ`, so that no process which is started later inherits them.
    """

    def __init__(self, settings: VllmSettings, environ: MutableMapping[str, str]) -> None:
        self._default = settings.default_source
        hub = Path(settings.hf_cache or _hf_cache(environ)).expanduser()
        declared = {HUGGINGFACE: SourceSettings(), **settings.sources}
        self._sources = {
            scheme: _build(scheme, source, hub, environ) for scheme, source in declared.items()
        }
        self._tokens = _take_tokens(self._sources, environ)

    def all(self) -> list[Source]:
        """Every source."""
        return list(self._sources.values())

    def find(self, name: ModelName) -> Source:
        """The source of a model.

        Raises:
            WeightsError: `repo_fetch_failed`: nobody configured it.
        """
        scheme = name.scheme or self._default
        if scheme in self._sources:
            return self._sources[scheme]
        near = difflib.get_close_matches(scheme, list(self._sources), n=1, cutoff=0.5)
        meant = f"Did you mean `{near[0]}:{name.bare}`? " if near else ""
        raise WeightsError(
            "repo_fetch_failed",
            f"there is no source '{scheme}' here",
            f"{meant}Known are: {', '.join(self._sources)}; [harness.vllm.sources] in neuron.toml adds more.",
        )

    @property
    def default(self) -> Source:
        """Of ids without a scheme."""
        return self._sources[self._default]

    def token(self, source: Source) -> str | None:
        """Its token; None: it has none, or the variable was not set."""
        return self._tokens.get(source.scheme)


def _build(scheme: str, source: SourceSettings, hub: Path, environ: Mapping[str, str]) -> Source:
    if scheme == HUGGINGFACE:
        return Source(
            scheme=scheme,
            endpoint=(source.endpoint or environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/"),
            auth_env=source.auth_env or AUTH_ENV,
            cache_dir=Path(source.cache_dir).expanduser() if source.cache_dir else hub,
        )
    # Beside the hub's own, never in it: two sources may have different models of one name.
    cache_dir = source.cache_dir or str(hub.parent / f"{hub.name}-{scheme}")
    return Source(
        scheme=scheme,
        endpoint=(source.endpoint or "").rstrip("/"),
        auth_env=source.auth_env,
        cache_dir=Path(cache_dir).expanduser(),
    )


def _take_tokens(
    sources: Mapping[str, Source], environ: MutableMapping[str, str]
) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for scheme, source in sources.items():
        if source.auth_env and environ.get(source.auth_env, "").strip():
            tokens[scheme] = environ[source.auth_env].strip()
        elif source.auth_env and scheme != HUGGINGFACE:
            log.warning("token not set", source=scheme, variable=source.auth_env)
    for variable in {*_OTHER_TOKENS, *(s.auth_env for s in sources.values() if s.auth_env)}:
        environ.pop(variable, None)
    return tokens


def _hf_cache(environ: Mapping[str, str]) -> str:
    """As the Hugging Face libraries look for it."""
    if cache := environ.get("HF_HUB_CACHE"):
        return cache
    home = environ.get("HF_HOME") or os.path.join(  # noqa: PTH118 - a variable's value, not a file
        environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    return f"{home}/hub"
