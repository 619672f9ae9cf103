# SPDX-License-Identifier: GPL-3.0-or-later
"""The form that a request asks an answer to have: JSON, a choice, calls that must be made.

vLLM's own way would hold an answer to it from the first token on, or from an end of reasoning that may never come.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import xgrammar
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.exceptions import VLLMValidationError
from vllm.parser.abstract_parser import structured_outputs_to_format
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.utils.mistral import is_mistral_tokenizer
from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

from neuron.host.engines import vllm_forms, vllm_reasoning
from neuron.host.engines.vllm_forms import Form
from neuron.host.engines.vllm_parsers import CallFormat


def set_form(request: Any, tokenizer: Any, prompt: list[int], written: CallFormat | None) -> None:
    """Have the form that a request asks for begin after the thinking, if there is any.

    Args:
        request: vLLM's, of the chat or the Responses API.
        tokenizer: the model's.
        prompt: as rendered.
        written: how the model writes calls; None: not known.
    """
    if getattr(request, "_grammar_from_parser", False):  # it has it all
        return
    form = _read_call_form(request, tokenizer, written) or _read_form(request)
    if form is None:
        return
    known = vllm_reasoning.read_tokenizer(tokenizer)
    if known.pair:
        start = vllm_reasoning.read_start(prompt, known)
        form = vllm_forms.allow_reasoning(known.pair, start, form)
    tag = {"type": "structural_tag", "format": form}
    request.structured_outputs = StructuredOutputsParams(structural_tag=json.dumps(tag))
    if isinstance(request, ResponsesRequest):
        request.text = None
    else:
        request.response_format = None


def _read_call_form(request: Any, tokenizer: Any, written: CallFormat | None) -> Form | None:
    """The form of calls that must be made; None: none must, or vLLM's own way will do.

    In formats with a separator vLLM asks for an array, which its parser then cannot read.
    """
    tools = _read_forced_tools(request)
    if not (tools and written and written.separator) or is_mistral_tokenizer(tokenizer):
        return None
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    opener, separator = vocabulary.get(written.opener), vocabulary.get(written.separator)
    if opener is None or separator is None:
        return None
    several = request.tool_choice == "required" and request.parallel_tool_calls is not False
    return vllm_forms.write_calls(tools, opener, separator, several=several)


def can_hold_calls(request: Any) -> bool:
    """Whether a tool must be called, and the arguments of all that may be can be held to their schemas."""
    tools = _read_forced_tools(request)
    if not tools:
        return False
    forms = [{"type": "json_schema", "json_schema": schema or {}} for schema in tools.values()]
    tag = {"type": "structural_tag", "format": {"type": "or", "elements": forms}}
    wanted = StructuredOutputsParams(structural_tag=json.dumps(tag))
    try:
        validate_xgrammar_grammar(SamplingParams(structured_outputs=wanted))
    except VLLMValidationError:
        return False
    return True


def _read_forced_tools(request: Any) -> dict[str, Any]:
    """Name and schema of the tools of which one must be called."""
    forced = _read_forced(request)
    return {name: schema for name, schema in _read_tools(request) if name in forced}


def _read_tools(request: Any) -> list[tuple[str, Any]]:
    """Name and schema of each tool; the Responses API has no `function` around them."""
    tools = [getattr(tool, "function", tool) for tool in request.tools or []]
    return [(tool.name, tool.parameters) for tool in tools if hasattr(tool, "parameters")]


def _read_forced(request: Any) -> set[str]:
    """Names of the tools of which one must be called."""
    choice = request.tool_choice
    if choice == "required":
        return {name for name, _ in _read_tools(request)}
    named = getattr(getattr(choice, "function", choice), "name", None)
    return {named} if named else set()


def _read_form(request: Any) -> Form | None:
    """The form that is wanted; None: none is.

    Raises vLLM's validation error where xgrammar cannot do it.
    """
    wanted = request.extract_structured_outputs()
    if wanted is None:
        return None
    # Inside a structural tag vLLM would not check it any more.
    validate_xgrammar_grammar(SamplingParams(structured_outputs=replace(wanted)))
    form = structured_outputs_to_format(wanted)
    if form is None:
        return None
    if wanted.json is None and not wanted.json_object:
        return vllm_forms.bound_white_space(form.model_dump())
    grammar = xgrammar.Grammar.from_json_schema(
        json.dumps(form.json_schema), any_whitespace=False, separators=(",", ":")
    )
    # xgrammar 0.2.8 has a blank after the comma all the same, where a schema leaves properties open.
    return {"type": "grammar", "grammar": str(grammar).replace('(", " ', '("," ')}
