# SPDX-License-Identifier: GPL-3.0-or-later
from cortex_core.node import Activation, FailedModel
from neuron.activating import Activating


def test_nothing_to_load_is_ready() -> None:
    assert Activating([]).state() == Activation(state="ready")


def test_it_is_ready_when_each_was_tried() -> None:
    activating = Activating(["a", "b"])
    assert activating.state() == Activation(state="pre_warming", pending=["a", "b"])
    activating.note_begun("a")
    assert activating.state() == Activation(state="pre_warming", pending=["b"], in_progress=["a"])
    activating.note_completed("a")
    activating.note_begun("b")
    assert activating.state().state == "pre_warming"
    activating.note_failed("b", "no room")
    failed = [FailedModel(model_id="b", error="no room")]
    assert activating.state() == Activation(state="ready", completed=["a"], failed=failed)
