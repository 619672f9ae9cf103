# SPDX-License-Identifier: GPL-3.0-or-later
"""Every setting of the gateway: the types of cortex.toml.

A setting is one field here, with its line under "Attributes:"; what does not fit is refused while the file is read,
so that the message names the file and the line. Pure.
"""

import re
from typing import Annotated, Literal

import msgspec

from cortex_core.catalogue import is_pattern
from cortex_core.http.keys import check_key
from cortex_core.wire import GATEWAY_PORT, METRICS_PORT
from cortex_gateway.dialects.prefix_hygiene import ALL_RULES
from cortex_gateway.routing import POLICY_NAMES

Seconds = Annotated[float, msgspec.Meta(gt=0)]
SecondsOrZero = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
CountOrZero = Annotated[int, msgspec.Meta(ge=0)]

_ADDRESS = re.compile(r"unix:/.+|(?:\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5})")
_URL = re.compile(r"https?://[^\s/?#]+(?:/[^\s?#]*)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[gateway]`: where it listens, and what it allows a request.

    Attributes:
        listen: host:port of the API.
        metrics_listen: host:port of GET /metrics.
        workers: processes that serve the API. There is one: who has which model, and who waits for it, has one owner.
        policy: which of several ready replicas serves: `least_busy`; `round_robin`; `session_affinity`, the one that has
            read the conversation before, unless it is saturated.
        max_body_mb: MiB that a request body may have.
        idle_timeout_s: seconds that a neuron may be silent in a stream; there is no total limit. An answer that is no
            stream is one silence, so that may take twelve times as long. Until an answer begins, what the neuron lets
            requests wait is added.
        drain_s: seconds that running answers have to end after SIGTERM.
    """

    listen: str = f"0.0.0.0:{GATEWAY_PORT}"
    metrics_listen: str = f"0.0.0.0:{METRICS_PORT}"
    workers: int = 1
    policy: str = "least_busy"
    max_body_mb: Count = 64
    idle_timeout_s: Seconds = 300.0
    drain_s: Seconds = 60.0

    def __post_init__(self) -> None:
        """Refuse what would only fail later. Raises ValueError; the operator's fault."""
        for key, address in (("listen", self.listen), ("metrics_listen", self.metrics_listen)):
            match = _ADDRESS.fullmatch(address)
            if not match or int(match[1] or 0) > 65535:
                raise ValueError(
                    f"`{key}` is '{address}', which is not host:port, such as 127.0.0.1:{GATEWAY_PORT}"
                )
        if self.metrics_listen == self.listen and not self.listen.endswith(":0"):
            raise ValueError(
                f"`metrics_listen` is '{self.metrics_listen}', as `listen` is; each needs an address of its own"
            )
        if self.workers != 1:
            raise ValueError(
                f"`workers` is {self.workers}, and can only be 1: two processes would each load, move and count by themselves"
            )
        if self.policy not in POLICY_NAMES:
            raise ValueError(
                f"`policy` is '{self.policy}', which is none of {', '.join(POLICY_NAMES)}"
            )


class LoadingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[loading]`: requests for models that are not up.

    Attributes:
        commit_after_s: seconds after which a held client of a stream gets its headers, so that it does not give up. A
            failure after that is told in the stream, and no more by the status.
        keepalive_s: seconds between the signs of life that it gets then, with how far the load is.
        load_wait_s: seconds that a request is held while its model comes up.
    """

    commit_after_s: SecondsOrZero = 3.0
    keepalive_s: Seconds = 5.0
    load_wait_s: Seconds = 600.0


class EvictionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[eviction]`: how models make room for others. A model goes to sleep where it can, else it is unloaded.

    Attributes:
        strategy: who goes first: `lru`, who was not used for longest; `priority`, who has the lowest priority in the
            catalogue, and never for one of a lower.
        min_residency_s: seconds that a model which came up stays at most, while others want its room: for twice as long as
            going and coming back took it there, where that was measured.
        idle_ttl_s: seconds without a request after which a model that nothing pins goes, though nobody wants its
            room; 0: never.
        drain_s: seconds that a model's running requests have to end, before it makes room; where they did not it serves on
            for as long. Who has waited for half of `max_wait_s` has it let end for all that is left of that.
        max_wait_s: seconds that a request waits for room.
        defrag_after_cycles: unloads and wakes on a node, each of which may leave holes in its devices' memory, after
            which every idle engine there is reloaded once; 0: never.
    """

    strategy: Literal["lru", "priority"] = "lru"
    min_residency_s: SecondsOrZero = 30.0
    idle_ttl_s: SecondsOrZero = 0.0
    drain_s: Seconds = 60.0
    max_wait_s: Seconds = 300.0
    defrag_after_cycles: CountOrZero = 0


class PollSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[poll]`: how the neurons are watched.

    Attributes:
        interval_s: seconds between two looks at a neuron. An OpenAI-compatible server that answers, and has no request of
            ours, is looked at every tenth time.
        timeout_s: seconds that one of its answers may take.
        misses: failed looks in a row after which a node counts as down.
    """

    interval_s: Seconds = 5.0
    timeout_s: Seconds = 5.0
    misses: Count = 3


class FleetSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[fleet]`: the operators' routes /fleet, which tell everything and take orders.

    Attributes:
        key: what they demand, as `Authorization: Bearer …` or `x-api-key`, or `sha256:` and its digest; None:
            whoever reaches the API gives orders.
    """

    key: str | None = None

    def __post_init__(self) -> None:
        """Refuse a key that nobody could show. Raises ValueError; the operator's fault."""
        if self.key is not None:
            check_key("key", self.key)


class NeuronSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[neurons]]`: one node of the fleet.

    Attributes:
        name: what the node is called in answers, logs and metrics, and in a model's `pinned_on`.
        endpoint: where its neuron daemon listens, such as http://10.0.0.5:13131; of an OpenAI-compatible server the base
            URL that its clients are given, such as https://host/api/v1. It is told in logs and to clients, so no password
            may be in it.
        kind: what listens there: `neuron`, or `openai` for any OpenAI-compatible server, whose models are served as they
            are, and never loaded or moved.
        secret: that of its neuron.toml, sent to it as `Authorization: Bearer …`; None: nothing is sent.
        api_key: the same of an OpenAI-compatible server.
    """

    name: str
    endpoint: str
    kind: Literal["neuron", "openai"] = "neuron"
    secret: str | None = None
    api_key: str | None = None

    def __post_init__(self) -> None:
        """Refuse what would only fail later. Raises ValueError; the operator's fault."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"`name` is '{self.name}'; it takes letters, digits, dots, dashes and underscores"
            )
        if "@" in self.endpoint:  # never repeated: endpoints are told in logs, errors and /fleet
            raise ValueError(
                f"`endpoint` has an '@': no name and password there. What it is to be shown is the `{self._credential_key}`"
            )
        if not _URL.fullmatch(self.endpoint):
            raise ValueError(
                f"`endpoint` is '{self.endpoint}', which is not a URL, such as http://10.0.0.5:13131"
            )
        if self.kind == "neuron" and self.endpoint.rstrip("/").endswith("/v1"):
            raise ValueError(
                f"`endpoint` is '{self.endpoint}', and a neuron has no /v1. Leave it out, or say `kind` = 'openai'"
            )
        if self.secret is not None and self.api_key is not None:
            raise ValueError("`secret` and `api_key` are two words for one thing; give one of them")
        if self.api_key is not None and self.kind == "neuron":
            raise ValueError("`api_key` is for the kind 'openai'; that of a neuron is its `secret`")
        if self.secret is not None:
            check_key("secret", self.secret, may_be_hashed=False)
        if self.api_key is not None:
            check_key("api_key", self.api_key, may_be_hashed=False)

    @property
    def _credential_key(self) -> str:
        return "secret" if self.kind == "neuron" else "api_key"

    @property
    def credential(self) -> str | None:
        """What is sent to it as `Authorization: Bearer …`; None: nothing."""
        return self.secret or self.api_key


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of cortex.toml.

    Attributes:
        gateway: where it listens, and what it allows a request.
        loading: requests for models that are not up.
        eviction: how models make room for others.
        poll: how the neurons are watched.
        fleet: who may use the operators' routes.
        neurons: the nodes of the fleet; none is allowed.
        models_config: path of the catalogue, from the folder of this file; it need not be there.
        prefix_hygiene: rule to whether it is in force; those not named are. Rules: `claude_code_billing_header`.
        default_model: what a request asks for that names no model, or one that nobody knows; None: it is refused.
    """

    gateway: GatewaySettings = GatewaySettings()
    loading: LoadingSettings = LoadingSettings()
    eviction: EvictionSettings = EvictionSettings()
    poll: PollSettings = PollSettings()
    fleet: FleetSettings = FleetSettings()
    neurons: list[NeuronSettings] = []
    models_config: str = "models.toml"
    prefix_hygiene: dict[str, bool] = {}
    default_model: str | None = None

    def __post_init__(self) -> None:
        """Refuse two nodes of one name, and rules that are not there. Raises ValueError; the operator's fault."""
        unknown = next((rule for rule in self.prefix_hygiene if rule not in ALL_RULES), None)
        if unknown is not None:
            known = ", ".join(sorted(ALL_RULES))
            raise ValueError(f"`prefix_hygiene` has '{unknown}', which is none of {known}")
        if self.default_model is not None and (
            not self.default_model.strip() or is_pattern(self.default_model)
        ):
            raise ValueError(f"`default_model` is '{self.default_model}', which names no model")
        names = [neuron.name for neuron in self.neurons]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"`neurons` has two entries with the name '{twice}'; names are unique")

    @property
    def hygiene_rules(self) -> frozenset[str]:
        """The prefix hygiene rules in force."""
        return frozenset(rule for rule in ALL_RULES if self.prefix_hygiene.get(rule, True))
