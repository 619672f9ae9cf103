# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers taken apart by our parser and vLLM's together, on real tokenizers: whole, and however a stream cuts them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scripted import LLAMA, MISTRAL, TOOLS, XML, Family, write_tokenizer

WEATHER = ("get_weather", {"city": "Paris"})
TIME = ("get_time", {"place": "Rome"})
HERMES_WEATHER = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
)
HERMES_TIME = '<tool_call>\n{"name": "get_time", "arguments": {"place": "Rome"}}\n</tool_call>'
XML_TIME = "<tool_call>\n<function=get_time>\n<parameter=place>\nRome\n</parameter>\n</function>\n</tool_call>"
LLAMA_BOTH = '{"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": "get_time", "parameters": {"place": "Rome"}}'


class Case(NamedTuple):
    """What a model says, and what of it is what.

    `lags`: its text may come after its tokens, as where a stop word's beginning is held back. vLLM's parser for DeepSeek
    then takes markers for text.
    """

    family: Family
    tool: str
    said: str
    reasoning: str = ""
    content: str = ""
    calls: tuple[tuple[str, Any], ...] = ()
    inside: bool = False
    lags: bool = True


# The markers of several families, none of them special.
BAR = "\uff5c"
DEEPSEEK = {
    name: f"<{BAR}tool\u2581{name}{BAR}>"
    for name in ("calls\u2581begin", "calls\u2581end", "call\u2581begin", "call\u2581end", "sep")
}
KIMI = [f"<|tool_{name}|>" for name in (
    "calls_section_begin", "calls_section_end", "call_begin", "call_end", "call_argument_begin",
)]  # fmt: skip
OTHERS = Family(
    special=("<|end|>",),
    added=(
        *("<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>"),
        *("<arg_value>", "</arg_value>", "<minimax:tool_call>", "</minimax:tool_call>"),
        *("<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"),
        *DEEPSEEK.values(),
        *KIMI,
    ),
    template="",
)


def write_deepseek(name: str, arguments: str) -> str:
    begin, ended, call, end, sep = DEEPSEEK.values()
    return f"{begin}{call}{name}{sep}{arguments}{end}{ended}"


def write_kimi(*calls: tuple[str, str]) -> str:
    section, section_end, begin, end, argument = KIMI
    written = [f"{begin}functions.{n}:{i}{argument}{a}{end}" for i, (n, a) in enumerate(calls)]
    return section + "".join(written) + section_end


def write_invoke(name: str, key: str, value: str) -> str:
    return f'<invoke name="{name}">\n<parameter name="{key}">{value}</parameter>\n</invoke>'


CASES = {
    "thinking that the template opened": Case(
        XML, "qwen3_coder", "Hm.\n</think>\n\nHello.", "Hm.", "Hello.", inside=True
    ),
    "thinking that never ends": Case(XML, "qwen3_coder", "Hm, so", "Hm, so", inside=True),
    "thinking that mentions a call": Case(XML, "hermes", "<think>a <tool_call>", "a <tool_call>"),
    "thinking twice": Case(
        XML, "hermes", "<think>one</think>two<think>three</think>four", "onethree", "twofour"
    ),
    "no thinking": Case(XML, "hermes", "just words", content="just words"),
    "a closer too many": Case(XML, "hermes", "<think>a</think>b</think>c", "a", "bc"),
    "two calls": Case(
        XML,
        "hermes",
        f"<think>a</think>Wait.\n{HERMES_WEATHER}\n{HERMES_TIME}",
        "a",
        "Wait.\n",
        (WEATHER, TIME),
    ),
    "a call, and one that is cut off": Case(
        XML,
        "hermes",
        HERMES_WEATHER + '\n<tool_call>\n{"nam',
        content='<tool_call>\n{"nam',
        calls=(WEATHER,),
    ),
    "a block that is no JSON": Case(
        XML,
        "hermes",
        'Oh <tool_call>\n{"name": get_weather\n</tool_call>',
        content='Oh <tool_call>\n{"name": get_weather\n</tool_call>',
    ),
    "arguments by their schema": Case(
        XML,
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "<parameter=hot>\ntrue\n</parameter>\n<parameter=else>\n7\n</parameter>\n</function>\n</tool_call>",
        calls=(("get_weather", {"city": "12", "days": 3, "hot": True, "else": "7"}),),
    ),
    "an argument of another type than its schema": Case(
        XML,
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=days>\nmany\n</parameter>\n</function>\n</tool_call>",
        calls=(("get_weather", {"days": "many"}),),
    ),
    "a call whose name is cut off": Case(
        XML,
        "qwen3_coder",
        f"{XML_TIME}<tool_call>\n<function=get_we",
        content="<tool_call>\n<function=get_we",
        calls=(TIME,),
    ),
    "an opener and no more": Case(
        XML, "qwen3_coder", "a</think><tool_call>\n", "a", "<tool_call>\n", inside=True
    ),
    "markers that are special": Case(
        MISTRAL, "mistral", "[THINK]Let me see.[/THINK]Hello.", "Let me see.", "Hello."
    ),
    "special calls": Case(
        MISTRAL,
        "mistral",
        '[THINK]a[/THINK][TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]get_time[ARGS]{"place": "Rome"}',
        "a",
        calls=(WEATHER, TIME),
    ),
    "a special call whose name is cut off": Case(
        MISTRAL, "mistral", "[TOOL_CALLS]get_wea", content="[TOOL_CALLS]get_wea"
    ),
    "bare calls": Case(LLAMA, "llama3_json", LLAMA_BOTH, calls=(WEATHER, TIME)),
    "calls as GLM writes them": Case(
        OTHERS,
        "glm45",
        "<think>a</think><tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>"
        "\n<tool_call>get_time\n<arg_key>place</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>",
        "a",
        calls=(WEATHER, TIME),
    ),
    "calls as Kimi writes them": Case(
        OTHERS,
        "kimi_k2",
        "<think>a</think>Hm."
        + write_kimi(("get_weather", '{"city": "Paris"}'), ("get_time", '{"place": "Rome"}')),
        "a",
        "Hm.",
        calls=(WEATHER, TIME),
    ),
    "calls as MiniMax writes them": Case(
        OTHERS,
        "minimax_m2",
        "<think>a</think><minimax:tool_call>\n"
        + write_invoke("get_weather", "city", "Paris")
        + "\n"
        + write_invoke("get_time", "place", "Rome")
        + "\n</minimax:tool_call>",
        "a",
        calls=(WEATHER, TIME),
    ),
    "calls as Seed writes them": Case(
        OTHERS,
        "seed_oss",
        "<seed:tool_call>\n<function=get_time>\n<parameter=place>Rome</parameter>\n</function>\n</seed:tool_call>",
        calls=(TIME,),
    ),
    "calls as DeepSeek writes them": Case(
        OTHERS,
        "deepseek_v31",
        "Hm.</think>Look." + write_deepseek("get_time", '{"place": "Rome"}'),
        "Hm.",
        "Look.",
        (TIME,),
        inside=True,
        lags=False,
    ),
    "JSON that is no call": Case(LLAMA, "llama3_json", '{"answer": 42}', content='{"answer": 42}'),
}


class Said(NamedTuple):
    """Made of a case: its parser's class, the request, and the answer in pieces."""

    parser: Any
    tokenizer: Any
    request: Any
    prompt: list[int]
    texts: list[str]
    tokens: list[int]

    def start(self) -> Any:
        return self.parser(self.tokenizer, self.request.tools)


def say(path: Path, case: Case) -> Said:
    from transformers import AutoTokenizer
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser import ParserManager

    import neuron.host.engines.vllm_parsing  # noqa: F401

    texts = write_tokenizer(path, case.family, {"": case.said})[""]
    tokenizer = AutoTokenizer.from_pretrained(path)
    parser = ParserManager.get_parser(
        tool_parser_name=case.tool, reasoning_parser_name="markers", enable_auto_tools=True
    )
    request = ChatCompletionRequest(
        messages=[{"role": "user", "content": "x"}], tools=TOOLS, tool_choice="auto"
    )
    prompt = tokenizer("x<think>\n" if case.inside else "x")["input_ids"]
    tokens = tokenizer.convert_tokens_to_ids(texts)
    return Said(parser, tokenizer, request, prompt, texts, tokens)


def read_stream(said: Said, pieces: list[tuple[str, list[int]]]) -> tuple[str, str, list[Any]]:
    """Reasoning, content and calls, as a client puts them together."""
    parser = said.start()
    reasoning = content = ""
    calls: list[list[str]] = []
    for number, (text, tokens) in enumerate(pieces):
        last = number == len(pieces) - 1
        delta = parser.parse_delta(text, tokens, said.request, said.prompt, finished=last)
        if delta is None:
            continue
        reasoning += delta.reasoning or ""
        content += delta.content or ""
        for part in delta.tool_calls:
            if part.function.name:
                assert (part.index, bool(part.id)) == (len(calls), True)
                calls.append([part.function.name, ""])
            calls[part.index][1] += part.function.arguments or ""
    return reasoning, content, [(name, json.loads(arguments)) for name, arguments in calls]


def ways(said: Said, *, lags: bool = True) -> Iterator[list[tuple[str, list[int]]]]:
    """Ways in which a stream may come: token by token, in two, and with text that lags behind its tokens."""
    pairs = [(text, [token]) for text, token in zip(said.texts, said.tokens, strict=True)]
    whole = "".join(said.texts)
    yield [*pairs, ("", [])]
    for cut in range(len(pairs) + 1):
        parts = pairs[:cut], pairs[cut:]
        yield [("".join(t for t, _ in part), [n for _, ids in part for n in ids]) for part in parts]
    for lag in (1, 5, 17) if lags else ():
        came = 0
        out: list[tuple[str, list[int]]] = []
        for text, tokens in pairs:
            came += len(text)
            sent = sum(len(piece) for piece, _ in out)
            out.append((whole[sent : max(sent, came - lag)], tokens))
        yield [*out, (whole[sum(len(piece) for piece, _ in out) :], [])]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_answer_is_taken_apart(tmp_path: Path, case: Case) -> None:
    said = say(tmp_path, case)
    parser = said.start()
    parser.set_prompt_token_ids(said.prompt)
    reasoning, content, calls = parser.parse(case.said, said.request, True, said.tokens)
    assert (reasoning or "", content or "") == (case.reasoning, case.content)
    assert tuple((call.name, json.loads(call.arguments)) for call in calls) == case.calls
    for pieces in ways(said, lags=case.lags):
        assert read_stream(said, pieces) == (case.reasoning, case.content, [*case.calls]), pieces


CUT_OFF = [
    Case(XML, "hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par'),
    Case(XML, "qwen3_coder", "<tool_call>\n<function=get_time>\n<parameter=place>\nRo"),
    Case(MISTRAL, "mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Par'),
    Case(LLAMA, "llama3_json", '{"name": "get_weather", "parameters": {"city": "Par'),
]


@pytest.mark.parametrize("case", CUT_OFF, ids=[case.tool for case in CUT_OFF])
def test_a_call_that_is_cut_off_is_text_or_looks_cut_off(tmp_path: Path, case: Case) -> None:
    said = say(tmp_path, case)
    assert said.start().parse(case.said, said.request, True, said.tokens)[1:] == (case.said, [])
    for pieces in ways(said):
        try:
            told = read_stream(said, pieces)
        except json.JSONDecodeError:  # the call had begun by then
            continue
        assert told == ("", case.said, [])


def test_an_operator_s_choice_of_vllm_s_parser_is_vllm_s() -> None:
    from vllm.parser import ParserManager

    from neuron.host.engines.vllm_parsing import Reading

    ours = ParserManager.get_parser(tool_parser_name="hermes", enable_auto_tools=True)
    theirs = ParserManager.get_parser(
        tool_parser_name="hermes", reasoning_parser_name="qwen3", enable_auto_tools=True
    )
    assert issubclass(ours, Reading)
    assert not issubclass(theirs, Reading)
    assert ParserManager.get_parser() is None
