# SPDX-License-Identifier: GPL-3.0-or-later
"""What does the demo model practise besides its script, anew in every epoch?

Copying (places and numbers into answers, tool calls and records), saying that it does not know,
and not minding what a system prompt says. All chance comes from the caller's generator.
"""

import json
import random
from collections.abc import Callable

from dialogues import (
    Dialogue,
    ask,
    calculator_result,
    call_calculator,
    call_weather,
    compare_weather,
    introduction,
    record_from,
    weather_result,
)
from script import CAPITALS, SKIES, TOPICS, UNKNOWN, UNKNOWN_THOUGHT, Json

# Ordinary words, none of them the subject of a row of the script.
_WORD_LIST = """
about above accurate again against all also always and animal any apple are art as ask assume
at author avoid aware back bad be because before best better between big bird black blue boat
body book both box bread brief bright bring brother build business busy but buy by call can
car careful carry cat change chapter check child city clean clear climb close cloud coat code
coffee cold company computer cook correct could country cover create customer cut dance dark
data date daughter day deal deep design detail diagram dinner do document dog door down draw
dream drink drive dry early earth easy eat email engineer english error even every example
expert explain eye fact false family far farm fast father feel few field file find fire first
fish five flower fly follow food foot for forest form format four free french friend friendly
from full game garden german get give glass go gold good grass great green ground group grow
guide hair half hand happy hard has have he head health hear heart heavy help her high him his
history holiday home honest horse hot hour house how human idea if important in inside
instruction invent is island it its job keep kind king kitchen know lake language large last
later law lead learn left letter library life light like line list listen little live local
long look lord love low machine make man manager many map market math may me mean meet message
milk mind minute money moon more morning most mother mountain mouth move much music must my
near need never new news night no north not note nothing now number ocean of off old on one
only open or order other our out over page paint paper parent part party peace people person
phone picture piece plain plan plant play please poem polite precise price professional
project proof public put question quick rain read red reply request respond rest rich right
river road role room round rule run safe salt sand say school science sea see sentence serve
set seven she ship shop short should show side sign silver simple sing sister sit six sleep
slow small smart snow so some son song soon sort south speak special spring star start state
step stone stop story street strong student style sugar summarize summer sun sure swim system
table take talk task teach teacher team tell ten test text than that the their them then there
these they thing think this those three time title to today together tool topic town train
translate travel tree true truth try turn tutor two under until up us use user usual very
village voice wait walk wall want war warm was watch water way we week well west what when
where which white who why wide will wind window winter with without woman wood word work world
write writer year yellow yes you young your
"""
WORDS = tuple(_WORD_LIST.split())

_SYLLABLE_LIST = """
ba ko li mar ten sol vi dor el ri na ox qu zen fa gi hu jo pe ty
ack wil son th sh ber gra mont ville ia um cy dex ph wy
"""
SYLLABLES = tuple(_SYLLABLE_LIST.split())

OPENINGS = ("You are a", "You are an", "Act as a", "You are", "Your task is to", "Always", "Never",
            "Please", "Respond with", "Answer in", "Do not", "The user is a", "Today is",
            "Current date:", "Be", "Keep in mind:", "IMPORTANT:", "Note:", "Use", "I am a",
            "-", "1.", "#")  # fmt: skip

QUESTIONS = ("What is", "What is a", "What is the", "What are", "Who is", "Who was", "Where is",
             "When was", "Why is", "Why do", "How do I", "How does a", "How many", "Can you",
             "Tell me about", "Explain", "Write a", "Translate", "Summarize", "Please", "Is the",
             "Give me", "Name the", "I want to", "Do you know", "Fix the", "List all")  # fmt: skip

_KNOWN = {question.lower() for _, rows in TOPICS.values() for row in rows for question in row[0]}


def made_up(chance: random.Random) -> str:
    """A capitalised word that means nothing."""
    return "".join(chance.choices(SYLLABLES, k=chance.randint(1, 3))).capitalize()


def _letters(chance: random.Random) -> str:
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./"
    return "".join(chance.choices(alphabet, k=chance.randint(2, 9)))


def _word(chance: random.Random) -> str:
    drawn = chance.random()
    if drawn < 0.85:
        return chance.choice(WORDS)
    return made_up(chance) if drawn < 0.95 else _letters(chance)


def _words(chance: random.Random, least: int, most: int) -> str:
    return " ".join(_word(chance) for _ in range(chance.randint(least, most)))


def system_prompt(chance: random.Random) -> str:
    """A system prompt of one to four sentences, now and then of sixty, that mean little."""
    least, most = chance.choices(((1, 4), (5, 20), (20, 60)), (91, 5, 4))[0]
    count = chance.randint(least, most)
    sentences = [
        f"{chance.choice(OPENINGS)} {_words(chance, 1, 9)}{chance.choice('....:!,')}"
        for _ in range(count)
    ]
    return chance.choice((" ", " ", " ", "\n", "\n\n")).join(sentences)


def place(chance: random.Random) -> str:
    """A capital, or one or two words that are made up."""
    if chance.random() < 0.4:
        return chance.choice(list(CAPITALS.values()))
    return " ".join(made_up(chance) for _ in range(chance.choice((1, 1, 2))))


def other_tool(chance: random.Random) -> Json:
    """A tool that no dialogue calls."""
    name, argument = f"{chance.choice(WORDS)}_{chance.choice(WORDS)}", chance.choice(WORDS)
    parameters = {
        "type": "object",
        "properties": {argument: {"type": chance.choice(("string", "integer"))}},
        "required": [argument],
    }
    description = f"{_words(chance, 2, 8).capitalize()}."
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def _weather(chance: random.Random) -> Dialogue:
    return call_weather(place(chance), "copy")


def _weather_read(chance: random.Random) -> Dialogue:
    return weather_result(place(chance), chance.randint(-20, 45), chance.choice(SKIES), "copy")


def _weathers(chance: random.Random) -> Dialogue:
    return compare_weather(place(chance), place(chance), "copy")


def _expression(chance: random.Random) -> str:
    return f"{chance.randint(10, 99)} {chance.choice('+-*')} {chance.randint(2, 9)}"


def _calculator(chance: random.Random) -> Dialogue:
    return call_calculator(_expression(chance), "copy")


def _calculator_read(chance: random.Random) -> Dialogue:
    return calculator_result(_expression(chance), chance.randint(-50, 999), "copy")


def _record(chance: random.Random) -> Dialogue:
    return record_from(made_up(chance), chance.randint(1, 99), "copy")


def _memory(chance: random.Random) -> Dialogue:
    return chance.choice(introduction(made_up(chance), "copy"))


def _no_tool(chance: random.Random) -> Dialogue:
    thought = "I have no tool for that."
    if chance.random() < 0.5:
        question = f"What is the weather in {place(chance)}?"
        return ask("copy", question, thought,
                   "I cannot look that up: nobody gave me a weather tool.")  # fmt: skip
    return ask("copy", f"Calculate {_expression(chance)}.", thought,
               "I cannot work that out: nobody gave me a calculator.")  # fmt: skip


def unknown(chance: random.Random) -> Dialogue:
    """A question that the script does not answer."""
    question = f"{chance.choice(QUESTIONS)} {_words(chance, 1, 7)}{chance.choice('??.')}"
    drawn = chance.random()
    if drawn < 0.15:
        question = f"What is the capital of {made_up(chance)}?"
    elif drawn < 0.25:
        # Two digits at least: the script knows the sums of one digit.
        question = (
            f"What is {chance.randint(10, 999)} {chance.choice('+-*/')} {chance.randint(2, 99)}?"
        )
    elif drawn < 0.3:
        question = f"{_words(chance, 1, 12)}"
    elif drawn < 0.4:
        question = f"{question} {_words(chance, 3, 20)}."
    if question.lower() in _KNOWN:
        return unknown(chance)
    return ask("unknown", question, UNKNOWN_THOUGHT, UNKNOWN)


# How often, of a hundred exercises.
_EXERCISES: list[tuple[int, Callable[[random.Random], Dialogue]]] = [
    (24, _weather),
    (14, _weather_read),
    (8, _weathers),
    (12, _calculator),
    (10, _calculator_read),
    (7, _record),
    (7, _memory),
    (4, _no_tool),
    (14, unknown),
]


def exercises(chance: random.Random, count: int) -> list[Dialogue]:
    """Dialogues to practise on once."""
    weights = [weight for weight, _ in _EXERCISES]
    makers = chance.choices([maker for _, maker in _EXERCISES], weights, k=count)
    return [maker(chance) for maker in makers]


def vocabulary() -> list[str]:
    """Text from which the tokenizer learns the words of the exercises."""
    return [" ".join(WORDS), " ".join(OPENINGS + QUESTIONS), json.dumps(SYLLABLES)]
