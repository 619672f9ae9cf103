# SPDX-License-Identifier: GPL-3.0-or-later
"""What gateways ask of neurons that are older or newer than they are."""

import msgspec
import pytest

from cortex_core.control import LoadRequest, MoveAnswer, MoveRequest, PlanAnswer, PlanRequest

REQUESTS = [LoadRequest, MoveRequest, PlanRequest]


@pytest.mark.parametrize("kind", REQUESTS)
def test_an_order_names_only_what_somebody_means(kind: type[msgspec.Struct]) -> None:
    """Each new field needs a default, which is not sent, or every older neuron would refuse the order."""
    required = [field.name for field in msgspec.structs.fields(kind) if field.required]
    assert required == ["model_id"]
    sent = msgspec.json.decode(msgspec.json.encode(kind(model_id="m")))
    assert sent == {"model_id": "m"}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_newer_gateway_is_understood_until_it_means_what_is_not_known(
    kind: type[msgspec.Struct],
) -> None:
    newer = msgspec.defstruct(
        "Newer", [("gently", bool, False)], bases=(kind,), kw_only=True, omit_defaults=True
    )
    assert msgspec.json.decode(msgspec.json.encode(newer(model_id="m")), type=kind) == kind(
        model_id="m"
    )
    with pytest.raises(msgspec.ValidationError, match="unknown field `gently`"):
        msgspec.json.decode(msgspec.json.encode(newer(model_id="m", gently=True)), type=kind)


@pytest.mark.parametrize("kind", REQUESTS)
def test_an_older_gateway_is_understood(kind: type[msgspec.Struct]) -> None:
    assert msgspec.json.decode(b'{"model_id": "m"}', type=kind) == kind(model_id="m")


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_typo_is_told(kind: type[msgspec.Struct]) -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `forse`"):
        msgspec.json.decode(b'{"model_id": "m", "forse": true}', type=kind)


def test_of_an_answer_what_is_not_known_is_passed_over() -> None:
    moved = b'{"status": "unloaded", "model_id": "m", "freed_mb": 3}'
    assert msgspec.json.decode(moved, type=MoveAnswer).status == "unloaded"
    planned = b'{"model_id": "m", "fits": true, "sure": 0.9}'
    assert msgspec.json.decode(planned, type=PlanAnswer).fits
