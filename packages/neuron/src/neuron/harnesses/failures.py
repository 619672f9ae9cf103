# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client is told of an engine that failed. Pure."""

from cortex_core.control import ModelSpec, PlanAnswer
from cortex_core.errors import CortexError, EngineDiedError, LoadFailedError, LoadRefusedError
from neuron.residents import Failure

# The caller's fault: another spec, or other files, would work.
REFUSED_KINDS = frozenset(
    """
    repo_fetch_failed empty_repo quant_not_found unsupported_architecture tp_infeasible insufficient_vram
    unknown_harness corrupt_weights invalid_spec multi_host_unsupported insufficient_disk
    """.split()
)

# The engine served, and was lost; another one may serve.
LOST_KINDS = frozenset({"engine_died", "engine_hung", "engine_poisoned", "wake_failed"})


def failure_error(model: str, node: str, failure: Failure) -> CortexError:
    """The error of a request or load that met the failure."""
    if failure.kind in LOST_KINDS:
        return EngineDiedError(model=model, reason=failure.reason)
    if failure.kind in REFUSED_KINDS:
        return LoadRefusedError(
            model=model,
            load_kind=failure.kind,
            reason=failure.reason.rstrip("."),
            suggestion=failure.suggestion,
        )
    reason = f"{failure.reason.rstrip('.')}. {failure.suggestion}".removesuffix(" ")
    return LoadFailedError(model=model, node=node, load_kind=failure.kind, reason=reason)


def refused_plan(spec: ModelSpec, error: LoadRefusedError | LoadFailedError) -> PlanAnswer:
    """The answer for what can never be loaded here as asked."""
    facts = error.facts
    return PlanAnswer(
        model_id=spec.model_id,
        fits=False,
        kind=str(facts["load_kind"]),
        reason=str(facts["reason"]).rstrip("."),
        suggestion=str(facts.get("suggestion", "")),
    )
