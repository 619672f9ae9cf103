# SPDX-License-Identifier: GPL-3.0-or-later
"""Our reading of answers in the place that vLLM has for it: reasoning by markers, tool calls by vLLM's parsers.

vLLM's reasoning parsers each know one family of models, and what they make of an answer without markers differs. Here
reasoning is taken out first (`vllm_reasoning`), and vLLM's tool parser gets what is left, as from a model
that does not think; what it leaves out is put back (`vllm_calls`). Importing this module changes what vLLM composes.
"""

import functools
from collections.abc import Sequence
from itertools import compress
from typing import Any

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    FunctionCall,
)
from vllm.parser import ParserManager
from vllm.parser.abstract_parser import DelegatingParser
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.tool_parsers.tool_strict_level import ToolStrictLevel

from neuron.host.engines import vllm_calls, vllm_forming, vllm_reasoning
from neuron.host.engines.vllm_calls import Call, Part, Told
from neuron.host.engines.vllm_parsers import CALL_FORMATS, OURS, CallFormat
from neuron.host.engines.vllm_reasoning import Piece, Splitter


class Reading(DelegatingParser):  # type: ignore[misc]
    """Reads one answer. What comes after it in the order of classes is composed as for a model that does not think."""

    always_adjust_request = True
    form: CallFormat | None = None

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        self._again = functools.partial(type(self), tokenizer, *args, **kwargs)
        self._known = vllm_reasoning.read_tokenizer(tokenizer)
        self._inside = False
        self._splitter: Splitter | None = None
        self._said = ""
        self._told = Told()

    def set_prompt_token_ids(self, prompt_token_ids: Sequence[int]) -> None:
        start = vllm_reasoning.read_start(prompt_token_ids, self._known)
        self._inside = start is vllm_reasoning.Start.OPEN

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        if self._known.pair is None:
            return 0
        return vllm_reasoning.count_reasoning(token_ids, self._known.pair, inside=self._inside)

    def adjust_request(self, request: Any) -> Any:
        if _may_call(request):
            if vllm_forming.can_hold_calls(request):
                # Otherwise a call that must be made would have any arguments, unless its tool is said to be strict.
                self.tool_strict_level = ToolStrictLevel.PARAMETER
            request = super().adjust_request(request)
        if self._known.marker_is_special:
            request.skip_special_tokens = False
        return request

    def parse(
        self,
        model_output: str,
        request: Any,
        enable_auto_tools: bool = False,
        model_output_token_ids: Sequence[int] = (),
    ) -> tuple[str | None, str | None, list[Any] | None]:
        piece = self._begin(request).feed(model_output, model_output_token_ids, last=True)
        whole = self.read_calls(piece.content, request, enable_auto_tools)
        calls = [FunctionCall(id=c.id, name=c.name, arguments=c.arguments) for c in whole.calls]
        return piece.reasoning or None, whole.content, calls

    def read_calls(self, said: str, request: Any, enable_auto_tools: bool) -> vllm_calls.Whole:
        """What content alone says. Each try has a parser of its own: they remember."""

        def read(text: str) -> vllm_calls.Whole:
            _, content, calls = super(Reading, self._again()).parse(
                text, request, enable_auto_tools
            )
            found = tuple(Call(call.name, call.arguments, call.id) for call in calls or [])
            return vllm_calls.Whole(content, found)

        if not (_may_call(request) and self.tool_parser):
            return vllm_calls.Whole(said or None)
        return vllm_calls.read_whole(said, read, self.form)

    def parse_delta(
        self,
        delta_text: str,
        delta_token_ids: list[int],
        request: Any,
        prompt_token_ids: list[int] | None = None,
        *,
        finished: bool,
    ) -> Any:
        if self._splitter is None:
            if prompt_token_ids is not None:
                self.set_prompt_token_ids(prompt_token_ids)
            self._splitter = self._begin(request)
        piece = self._splitter.feed(delta_text, delta_token_ids, last=finished)
        delta = self._read_delta(piece, request, finished) or DeltaMessage()
        if piece.reasoning and request.include_reasoning:
            delta.reasoning = piece.reasoning
        return delta if delta.content or delta.reasoning or delta.tool_calls else None

    def _read_delta(self, piece: Piece, request: Any, finished: bool) -> Any:
        if not (_may_call(request) and self.tool_parser):
            return DeltaMessage(content=piece.content)
        self._said += piece.content
        # Without content it would begin a call that was asked for by name, whether the model does or not.
        if not (piece.content or piece.tokens or (finished and self._said)):
            return None
        delta = super().parse_delta(
            piece.content, list(piece.tokens), request, [], finished=finished
        )
        delta = delta or DeltaMessage()
        parts = _read_parts(delta.tool_calls)
        if finished:
            whole = self.read_calls(self._said, request, True)
            last = self._told.finish(delta.content or "", parts, self._said, whole, self.form)
            return DeltaMessage(content=last.content, tool_calls=[*map(_write_part, last.parts)])
        chosen = self._told.choose(delta.content or "", parts)
        delta.tool_calls = list(compress(delta.tool_calls, chosen))
        return delta

    def _begin(self, request: Any) -> Any:
        if self._known.pair is None:
            return _Unsplit()
        hide = self._known.marker_is_special and not _may_call(request)
        hidden = self._known.special if hide else {}
        return Splitter(self._known.pair, inside=self._inside, hidden=hidden)


class _Unsplit:
    """A splitter for models that do not think."""

    def feed(self, text: str, tokens: Sequence[int], *, last: bool) -> Piece:
        return Piece(content=text, tokens=tuple(tokens))


def _may_call(request: Any) -> bool:
    return bool(request.tools) and request.tool_choice != "none"


def _read_parts(calls: list[Any]) -> list[Part]:
    functions = [call.function or DeltaFunctionCall() for call in calls]
    return [
        Part(call.index, function.name, function.arguments or "")
        for call, function in zip(calls, functions, strict=True)
    ]


def _write_part(part: Part) -> Any:
    begins = {"id": part.id or make_tool_call_id(), "type": "function"} if part.name else {}
    function = DeltaFunctionCall(name=part.name, arguments=part.arguments)
    return DeltaToolCall(index=part.number, function=function, **begins)


_COMPOSE = ParserManager.get_parser


def _get_parser(
    tool_parser_name: str | None = None, reasoning_parser_name: str | None = None, **rest: Any
) -> Any:
    """The class that vLLM composes to read answers; None: they are not read."""
    if reasoning_parser_name not in (None, "", OURS):
        return _COMPOSE(tool_parser_name, reasoning_parser_name, **rest)
    found = _COMPOSE(tool_parser_name, None, **rest)
    if found is None:
        return Reading if reasoning_parser_name else None
    # Some families have a parser of one piece, which is not to be taken apart.
    if rest.get("is_harmony") or DelegatingParser not in found.__bases__:
        return found
    return type("Parser", (Reading, found), {"form": CALL_FORMATS.get(tool_parser_name or "")})


_RENDER = OnlineRenderer.preprocess_chat


async def _preprocess_chat(
    self: Any, request: Any, *args: Any, parser: type[Any] | None = None, **rest: Any
) -> Any:
    """Render a conversation, and set the form of the answer, which depends on how the prompt ends."""
    conversation, inputs = await _RENDER(self, request, *args, parser=parser, **rest)
    if parser is not None and issubclass(parser, Reading):
        prompt = inputs[0].get("prompt_token_ids") or []
        vllm_forming.set_form(request, self.renderer.get_tokenizer(), prompt, parser.form)
    return conversation, inputs


ParserManager.get_parser = _get_parser
OnlineRenderer.preprocess_chat = _preprocess_chat
