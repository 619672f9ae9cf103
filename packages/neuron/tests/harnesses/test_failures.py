# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from neuron.harnesses.failures import failure_error
from neuron.residents import Failure


@pytest.mark.parametrize(
    ("failure", "status", "retry", "message"),
    [
        (
            Failure(kind="engine_died", reason="it was killed by SIGKILL"),
            502,
            True,
            "The engine of 'm' died: it was killed by SIGKILL.",
        ),
        (
            Failure(kind="corrupt_weights", reason="cut off.", suggestion="Fetch it again."),
            422,
            False,
            "The model 'm' cannot be loaded: cut off. Fetch it again.",
        ),
        (
            Failure(kind="engine_start_failed", reason="no memory", suggestion="Ask for less."),
            502,
            False,
            "Loading 'm' on n failed (engine_start_failed): no memory. Ask for less.",
        ),
        (
            Failure(kind="start_timeout", reason="it was not ready"),
            502,
            False,
            "Loading 'm' on n failed (start_timeout): it was not ready.",
        ),
    ],
)
def test_a_failure_is_told_as_what_it_is(
    failure: Failure, status: int, retry: bool, message: str
) -> None:
    error = failure_error("m", "n", failure)
    assert (error.status, error.retry_after_s is not None) == (status, retry)
    assert error.message == message
