# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from neuron.host.engines.echo_options import EchoOptions, OptionsError, read_options


@pytest.mark.parametrize(
    ("model_id", "options"),
    [
        ("echo", EchoOptions()),
        ("echo/small", EchoOptions()),
        ("echo/a?tokens=300&token_s=0.01", EchoOptions(tokens=300, token_s=0.01)),
        ("echo/a?reasoning=1&tools=true", EchoOptions(reasoning=True, tools=True)),
        ("echo/a?fail=status:503&max_running=4", EchoOptions(fail="status:503", max_running=4)),
        (
            "echo/a?can_sleep=false&sleep_s=1&wake_s=2",
            EchoOptions(can_sleep=False, sleep_s=1, wake_s=2),
        ),
        ("echo/a?fail=hang", EchoOptions(fail="hang")),
        ("echo/a?embeddings=1", EchoOptions(embeddings=True)),
        ("echo/a?load_s=1&ttft_s=0.2&context=8", EchoOptions(load_s=1, ttft_s=0.2, context=8)),
    ],
)
def test_options_are_read_from_the_id(model_id: str, options: EchoOptions) -> None:
    assert read_options(model_id) == options


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("echo?tokns=3", "tokns"),
        ("echo?tokens=many", "tokens"),
        ("echo?tokens=0", "tokens"),
        ("echo?token_s=-1", "token_s"),
        ("echo?tokens=1&tokens=2", "twice"),
        ("echo?tokens", "not name=value"),
        ("echo?fail=always", "`fail` cannot be 'always'"),
        ("echo?fail=status:200", "`fail` cannot be 'status:200'"),
    ],
)
def test_what_there_is_not_is_refused_and_what_there_is_named(model_id: str, message: str) -> None:
    with pytest.raises(OptionsError, match=message) as caught:
        read_options(model_id)
    assert "tokens, token_s, ttft_s" in caught.value.suggestion
    assert "status:NNN" in caught.value.suggestion


def test_a_status_to_fail_with_is_a_number() -> None:
    assert EchoOptions(fail="status:503").fail_status == 503
    assert EchoOptions(fail="stream").fail_status is None
