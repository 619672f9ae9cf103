# SPDX-License-Identifier: GPL-3.0-or-later
"""VLLM's errors in our words. The texts are those that vLLM 0.32 was seen to give."""

from typing import Any

import pytest

from neuron.host.engines.vllm_failures import (
    Cause,
    Refusal,
    read_refusal,
    read_start_failure,
    read_validation,
)

GENERIC = Cause(
    kind="RuntimeError",
    text="Engine core initialization failed. See root cause above. Failed core proc(s): {}",
)
DRESSED = (
    "1 validation error for VllmConfig\n  Value error, Total number of attention heads (4) must be divisible by "
    "tensor parallel size (3). [type=value_error, input_value=ArgsKwargs(()), input_type=ArgsKwargs]\n"
    "    For further information visit https://errors.pydantic.dev/2.14/v/value_error"
)
KV_SMALL = (
    "To serve at least one request with the model's max seq len (4096), (0.01 GiB KV cache is needed. Based on the "
    "available memory, the estimated maximum model length is 384. Try increasing `gpu_memory_utilization`"
)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (
            "ValidationError",
            "1 validation error for ModelConfig\n  Value error, The checkpoint has model type `foo` but Transformers "
            "does not recognize this architecture. [type=value_error, x]",
            "unsupported_architecture",
        ),
        (
            "ValidationError",
            "1 validation error for ModelConfig\n  Value error, Model architectures ['Foo'] are not supported for "
            "now. Supported architectures: dict_keys(['A', 'B'])",
            "unsupported_architecture",
        ),
        ("ValidationError", DRESSED, "tp_infeasible"),
        ("ValueError", KV_SMALL, "insufficient_vram"),
        (
            "ValueError",
            "Available memory on node 0 (5/7 GiB) on kv cache allocation is less than requested memory for kv (87 GiB).",
            "insufficient_vram",
        ),
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB.", "insufficient_vram"),
        ("MemoryError", "", "insufficient_vram"),
        ("SafetensorError", "Error while deserializing header", "corrupt_weights"),
        ("RuntimeError", "Cannot find any model weights with `/m`", "corrupt_weights"),
        (
            "ValueError",
            "Following weights were not initialized from checkpoint: {'model.layers.4.mlp.weight'}",
            "corrupt_weights",
        ),
        (
            "RuntimeError",
            "start (0) + length (640) exceeds dimension size (512).",
            "corrupt_weights",
        ),
        ("TemplateSyntaxError", "Expected an expression", "invalid_spec"),
        (
            "TypeError",
            "Error: --enable-auto-tool-choice requires tool_parser:'nope' which has not been registered",
            "invalid_spec",
        ),
        ("KeyError", "\"Reasoning parser 'nope' not found. Available parsers: a\"", "invalid_spec"),
        (
            "ValidationError",
            "1 validation error for ModelConfig\n  Value error, User-specified max_model_len (100000) is greater than "
            "the derived max_model_len (4096)",
            "invalid_spec",
        ),
        ("ValueError", "No common block size for 7 (CPU_ATTN: [MultipleOf(32)]).", "invalid_spec"),
        ("RuntimeError", "something never seen", "engine_start_failed"),
    ],
)
def test_a_failed_start_has_a_kind(kind: str, text: str, expected: str) -> None:
    failure = read_start_failure([Cause(kind=kind, text=text), GENERIC])
    assert failure.kind == expected


def test_the_message_is_the_cause_without_its_dressing() -> None:
    failure = read_start_failure([Cause(kind="ValidationError", text=DRESSED)])
    assert str(failure) == (
        "Total number of attention heads (4) must be divisible by tensor parallel size (3)."
    )


def test_the_suggestion_says_what_would_fit() -> None:
    failure = read_start_failure([Cause(kind="ValueError", text=KV_SMALL), GENERIC])
    assert failure.suggestion == "Set `max_model_len` to 384 or less, or raise `kv_cache_mb`."


def test_the_generic_cause_is_told_where_there_is_no_other() -> None:
    failure = read_start_failure([GENERIC])
    assert failure.kind == "engine_start_failed"
    assert "Engine core initialization failed" in str(failure)


def test_the_generic_cause_is_passed_over_wherever_it_stands() -> None:
    failure = read_start_failure([GENERIC, Cause(kind="ValueError", text="never seen")])
    assert str(failure) == "never seen"


def test_an_unknown_cause_keeps_the_name_of_its_class() -> None:
    assert str(read_start_failure([Cause(kind="IndexError", text="list index")])) == (
        "IndexError: list index"
    )


def test_a_message_is_one_line_and_not_endless() -> None:
    failure = read_start_failure([Cause(kind="ValueError", text="a\n b" * 1000)])
    assert len(str(failure)) <= 501
    assert "\n" not in str(failure)


CONTEXT = "This model's maximum context length is 4096 tokens. However, your prompt contains at least 4097."


@pytest.mark.parametrize(
    ("refusal", "status", "code", "param", "says"),
    [
        (
            Refusal(status=400, message=CONTEXT + " (parameter=input_tokens, value=4097)"),
            400,
            "context_length_exceeded",
            None,
            CONTEXT,
        ),
        (
            Refusal(
                status=400,
                message="Input length (5000) exceeds model's maximum context length (4096).",
            ),
            400,
            "context_length_exceeded",
            None,
            "maximum context length is 4096 tokens",
        ),
        (
            Refusal(status=400, message="m is not a multimodal model"),
            400,
            "vision_unsupported",
            None,
            "reads text only",
        ),
        (
            Refusal(
                status=400,
                message="temperature must be non-negative, got -3.0. (parameter=temperature, value=-3.0)",
                param="temperature",
            ),
            400,
            "invalid_request_body",
            "temperature",
            "does not fit: temperature must be non-negative, got -3.0.",
        ),
        (
            Refusal(status=400, message="At most 0 audio(s) may be provided in one prompt."),
            400,
            "invalid_request_body",
            None,
            "At most 0 audio",
        ),
        (
            Refusal(
                status=400,
                message="Failed to transform json schema into a grammar: "
                '[01:20:42] /project/cpp/json_schema_converter.cc:4944: Unsupported type "nope"\n',
            ),
            400,
            "invalid_request_body",
            None,
            'into a grammar: Unsupported type "nope"',
        ),
        (Refusal(status=404, message="no such model"), 404, "model_not_found", None, "'m'"),
        (Refusal(status=500, message="oh"), 502, "upstream_protocol_error", None, "'m'"),
        (Refusal(message="EngineCore is gone", died=True), 502, "engine_died", None, "is gone"),
    ],
)
def test_a_refused_request_has_a_code(
    refusal: Refusal, status: int, code: str, param: str | None, says: str
) -> None:
    error = read_refusal(refusal, "m")
    assert (error.status, error.code, error.param) == (status, code, param)
    assert says in error.message


def missing(*location: Any) -> dict[str, Any]:
    return {"type": "missing", "loc": location, "msg": "Field required"}


def text(*location: Any) -> dict[str, Any]:
    return {"type": "string_type", "loc": location, "msg": "a valid string", "input": ["x"]}


def tag(*location: Any) -> dict[str, Any]:
    return {"type": "literal_error", "loc": location, "msg": "Input should be 'developer'"}


@pytest.mark.parametrize(
    ("errors", "path"),
    [
        ([missing("messages")], "messages"),
        ([missing("messages", 0, "ChatCompletionUserMessageParam", "role")], "messages.0.role"),
        (
            [
                tag("messages", 0, "ChatCompletionDeveloperMessageParam", "role"),
                missing("messages", 0, "ChatCompletionUserMessageParam", "content"),
            ],
            "messages.0.content",
        ),
        ([missing("stop", "str"), missing("stop", "list[str]")], "stop"),
        ([missing(0, "ChatCompletionContentPartTextParam", "text")], "content.0.text"),
        ([tag("messages", 0, "A", "role")], "messages.0.role"),
        ([missing()], None),
        ([text("stop", "str"), missing("stop", "list[str]", 1)], "stop.1"),
        (
            [
                text("input", "str"),
                tag("input", "list[Call|Message]", 0, "Message", "type"),
                missing("input", "list[Call|Message]", 0, "Call", "name"),
            ],
            "input.0.name",
        ),
        (
            [
                text("input", "str"),
                missing("input", "list[Message]", 0, "Message", "content", 0, "Part", "text"),
                tag("input", "list[Message]", 0, "Message", "content", 0, "Part", "type"),
                tag("input", "list[Call]", 0, "Call", "type"),
            ],
            "input.0.content.0.type",
        ),
    ],
)
def test_the_field_at_fault_is_named(errors: list[dict[str, Any]], path: str | None) -> None:
    assert read_validation(errors).param == path


def test_the_message_says_which_field_and_why() -> None:
    assert read_validation([missing("messages")]) == Refusal(
        status=400, message="messages: Field required", param="messages"
    )


def test_a_value_of_no_known_type_is_told_the_types_that_there_are() -> None:
    words = ["'text'", "'image' or 'audio'", "'text'"]
    errors = [
        {**tag("parts", 0, f"P{n}", "type"), "msg": f"Input should be {w}"}
        for n, w in enumerate(words)
    ]
    told = read_validation(errors)
    assert told.message == "parts.0.type: Input should be 'text', 'image', 'audio'"
