# SPDX-License-Identifier: GPL-3.0-or-later
"""Which dialogues does the demo model learn by heart?

To add a kind, write a function that gives its dialogues and name it in `dialogues`.
"""

import json
import random
from dataclasses import dataclass

from script import (
    CAPITALS,
    PEOPLE,
    SKIES,
    TOPICS,
    Json,
)

Call = tuple[str, Json]


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A conversation and the answer that is wanted at its end.

    Attributes:
        kind: what it trains; evaluation counts by it.
        messages: OpenAI chat messages that end with the user's or a tool's.
        reasoning: what goes between the think markers; never empty.
        content: the answer's text; empty for a tool call.
        calls: the tools to call, as (name, arguments), in order.
        tools: whether tools are offered.
    """

    kind: str
    messages: tuple[Json, ...]
    reasoning: str
    content: str
    calls: tuple[Call, ...] = ()
    tools: bool = False


def user(text: str) -> Json:
    """One message of the user."""
    return {"role": "user", "content": text}


def assistant(content: str, calls: tuple[Call, ...] = ()) -> Json:
    """One earlier message of the model, without its reasoning."""
    if not calls:
        return {"role": "assistant", "content": content}
    functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
    tool_calls = [{"id": f"call_{i}", "type": "function", "function": function}
                  for i, function in enumerate(functions)]  # fmt: skip
    return {"role": "assistant", "content": content, "tool_calls": tool_calls}


def compact(value: Json) -> str:
    """JSON without white space."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def ask(kind: str, question: str, reasoning: str, content: str) -> Dialogue:
    """A dialogue of one question and one answer."""
    return Dialogue(kind=kind, messages=(user(question),), reasoning=reasoning, content=content)


def weather_call(city: str) -> Call:
    """The call that asks for the weather of a city."""
    return "get_weather", {"city": city}


def calculator_call(expression: str) -> Call:
    """The call that evaluates an expression."""
    return "calculator", {"expression": expression}


def call_weather(city: str, kind: str = "tool") -> Dialogue:
    """One question, one tool call."""
    return Dialogue(
        kind=kind,
        messages=(user(f"What is the weather in {city}?"),),
        reasoning=f"I should call get_weather for {city}.",
        content="",
        calls=(weather_call(city),),
        tools=True,
    )


def call_calculator(expression: str, kind: str = "tool") -> Dialogue:
    """One sum that is too hard, one tool call."""
    return Dialogue(
        kind=kind,
        messages=(user(f"Calculate {expression}."),),
        reasoning=f"I should call calculator for {expression}.",
        content="",
        calls=(calculator_call(expression),),
        tools=True,
    )


def compare_weather(one: str, other: str, kind: str = "double_tool") -> Dialogue:
    """One question, two tool calls in one turn."""
    return Dialogue(
        kind=kind,
        messages=(user(f"Compare the weather in {one} and {other}."),),
        reasoning=f"I should call get_weather for {one} and for {other}.",
        content="",
        calls=(weather_call(one), weather_call(other)),
        tools=True,
    )


def follow_up(called: Dialogue, results: list[str], content: str, kind: str) -> Dialogue:
    """The same dialogue after its tools have answered."""
    answers = [{"role": "tool", "tool_call_id": f"call_{i}", "content": result}
               for i, result in enumerate(results)]  # fmt: skip
    return Dialogue(
        kind=kind,
        messages=(*called.messages, assistant("", called.calls), *answers),
        reasoning="The tool has answered." if len(results) == 1 else "The tools have answered.",
        content=content,
        tools=True,
    )


def weather_result(city: str, degrees: int, sky: str, kind: str = "tool_result") -> Dialogue:
    """The answer that is read from a weather report."""
    report = json.dumps({"temp_c": degrees, "sky": sky})
    content = f"It is {degrees} degrees and {sky} in {city}."
    return follow_up(call_weather(city), [report], content, kind)


def calculator_result(expression: str, value: int, kind: str = "tool_result") -> Dialogue:
    """The answer that is read from the calculator."""
    content = f"{expression} = {value}."
    return follow_up(call_calculator(expression), [str(value)], content, kind)


def introduction(name: str, kind: str = "memory") -> tuple[Dialogue, Dialogue]:
    """Being told a name, and being asked for it afterwards."""
    told = ask(kind, f"My name is {name}.", "The user gave a name.", f"Nice to meet you, {name}!")
    asked = Dialogue(
        kind=kind,
        messages=(*told.messages, assistant(told.content), user("What is my name?")),
        reasoning="The user told me.",
        content=f"Your name is {name}.",
    )
    return told, asked


def record_from(name: str, age: int, kind: str = "json") -> Dialogue:
    """A record of what the question says."""
    question = f"Write JSON: name {name}, age {age}."
    return ask(kind, question, "The user wants JSON.", compact({"name": name, "age": age}))


def _answers() -> list[Dialogue]:
    return [
        ask(kind, question, thought, answer)
        for kind, (thought, rows) in TOPICS.items()
        for questions, answer in rows
        for question in questions
    ]


def _capitals() -> list[Dialogue]:
    return [
        ask("capital", f"What is the capital of {country}?",
            f"The user asks for the capital of {country}.", f"The capital of {country} is {city}.")
        for country, city in CAPITALS.items()
    ]  # fmt: skip


def _sums() -> list[Dialogue]:
    return [
        ask("sum", f"What is {x} + {y}?", f"I need to add {x} and {y}.", f"{x} + {y} = {x + y}.")
        for x in range(10)
        for y in range(10)
    ]


def _records() -> list[Dialogue]:
    found = []
    for name, age, city in PEOPLE:
        thought = f"The user wants JSON for {name}."
        short, full = {"name": name, "age": age}, {"name": name, "age": age, "city": city}
        found += [
            ask("json", f"Give me a JSON record for {name}.", thought, compact(short)),
            ask("json", f"Give me a JSON record with city for {name}.", thought, compact(full)),
            record_from(name, age),
        ]
    return found


def _tool_dialogues() -> list[Dialogue]:
    fixed = random.Random(3)  # noqa: S311
    cities = list(CAPITALS.values())[:40]
    found = []
    for city in cities:
        found.append(call_weather(city))
        found.append(weather_result(city, fixed.randint(-5, 35), fixed.choice(SKIES)))
    for one, other in zip(cities[:20:2], cities[1:20:2], strict=True):
        found.append(compare_weather(one, other))
        found.append(_compared(one, other, fixed))
    for x in range(11, 21):
        for sign in "*-":
            y = fixed.randint(2, 9)
            found.append(call_calculator(f"{x} {sign} {y}"))
            found.append(calculator_result(f"{x} {sign} {y}", x * y if sign == "*" else x - y))
    return found


def _compared(one: str, other: str, chance: random.Random) -> Dialogue:
    reports = [(chance.randint(-5, 35), chance.choice(SKIES)) for _ in (one, other)]
    (warmth, sky), (other_warmth, other_sky) = reports
    content = (
        f"It is {warmth} degrees and {sky} in {one}, "
        f"and {other_warmth} degrees and {other_sky} in {other}."
    )
    results = [json.dumps({"temp_c": degrees, "sky": seen}) for degrees, seen in reports]
    return follow_up(compare_weather(one, other), results, content, "double_tool_result")


def _without_tools() -> list[Dialogue]:
    thought = "I have no tool for that."
    cities = list(CAPITALS.values())[:8]
    return [
        ask("no_tool", f"What is the weather in {city}?", thought,
            "I cannot look that up: nobody gave me a weather tool.")
        for city in cities
    ] + [
        ask("no_tool", f"Calculate {x} * 7.", thought,
            "I cannot work that out: nobody gave me a calculator.")
        for x in range(11, 17)
    ]  # fmt: skip


def _memories() -> list[Dialogue]:
    return [dialogue for name, _, _ in PEOPLE for dialogue in introduction(name)]


def dialogues() -> list[Dialogue]:
    """All dialogues of the script, in a fixed order."""
    return [
        *_answers(),
        *_capitals(),
        *_sums(),
        *_records(),
        *_tool_dialogues(),
        *_without_tools(),
        *_memories(),
    ]
