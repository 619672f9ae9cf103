# SPDX-License-Identifier: GPL-3.0-or-later
"""What does the demo model say? The text of its script: questions, answers, tools and facts.

To add an answer, add one row to a topic of `TOPICS`; train and evaluate again.
Pure.
"""

from typing import Any

Json = dict[str, Any]

# A topic is a thought, said before answering, and rows of (questions, answer). Questions of one
# row mean the same.
Row = tuple[tuple[str, ...], str]

ABOUT_CORTEX: list[Row] = [
    (
        ("What is cortex?", "What is a cortex?", "What does cortex do?", "Tell me about cortex."),
        "cortex is a gateway that makes a fleet of GPU machines look like one API. It speaks "
        "OpenAI and Anthropic, and loads models when they are asked for.",
    ),
    (
        ("What is a neuron?", "What is neuron?", "What does a neuron do?", "Tell me about neuron."),
        "A neuron is the daemon that runs on each GPU machine. It starts and watches the engines "
        "that serve models there.",
    ),
    (
        ("What is the difference between cortex and neuron?",),
        "There is one cortex, the gateway that clients talk to. There is one neuron on each GPU "
        "machine, and it runs the models.",
    ),
    (
        (
            "Which port does the gateway use?",
            "What port does the gateway use?",
            "Which port does cortex use?",
            "What is the port of the gateway?",
        ),
        "The gateway listens on port 31313.",
    ),
    (
        (
            "Which port has the metrics?",
            "What is the metrics port?",
            "Which port do the metrics use?",
            "Where are the metrics?",
        ),
        "The gateway's Prometheus metrics are on port 31314, at GET /metrics.",
    ),
    (
        (
            "Which port does a neuron use?",
            "What port does a neuron use?",
            "Which port does neuron use?",
            "What is the port of a neuron?",
        ),
        "A neuron listens on port 13131.",
    ),
    (
        ("How do I see what is running?", "What is running?", "How do I see the status?"),
        "Run `cortex status`. With `--watch` it stays up to date, with `--json` scripts can read "
        "it.",
    ),
    (
        ("How do I check a config?", "How do I check my configuration?"),
        "Run `cortex check CONFIG`. It names the line of every mistake.",
    ),
    (
        ("How do I list models?", "Which models are there?", "How do I list the models?"),
        "Run `cortex models`, or ask the gateway: `GET /v1/models`.",
    ),
    (
        (
            "What happens when a model is not loaded?",
            "What happens if a model is not loaded?",
        ),
        "The request waits while cortex loads the model on a node that has room. However many "
        "ask, there is one load.",
    ),
    (
        ("What is a node?",),
        "A node is a machine of the fleet, as the gateway names it. A neuron runs on it.",
    ),
    (("What is an engine?",), "An engine is one running harness that serves one model."),
    (
        ("What is a harness?",),
        "A harness is an adapter for one kind of engine. There are two: `vllm` and `echo`.",
    ),
    (("What is a replica?",), "A replica is a model that is ready on a node."),
    (
        ("What is a fleet?", "What is the fleet?"),
        "The fleet is all the nodes that the gateway knows.",
    ),
    (
        ("What is a dialect?",),
        "A dialect is the API that a client speaks. cortex speaks two: OpenAI and Anthropic.",
    ),
    (
        ("What is residency?", "What is the residency of a model?"),
        "Residency says where a model is: serving, asleep in host memory, on disk, or remote.",
    ),
    (
        ("What is an upstream?",),
        "An upstream is the neuron that answers a request, seen from the gateway.",
    ),
    (
        ("What is eviction?", "What does evict mean?"),
        "To evict is to make room: an idle model goes to sleep or is unloaded. Pinned models and "
        "work in flight are never touched.",
    ),
    (
        ("What is a sleeping model?", "What does asleep mean?"),
        "A sleeping model keeps its weights in host memory, so that it wakes in seconds.",
    ),
    (
        ("Can I use Claude Code?", "How do I use Claude Code?"),
        "Yes. Set ANTHROPIC_BASE_URL to the gateway, for example http://localhost:31313, and "
        "start Claude Code.",
    ),
    (
        ("Can I use the Anthropic API?", "Do you speak Anthropic?"),
        "Yes. The gateway serves `POST /v1/messages`, with streaming, thinking and tools.",
    ),
    (
        ("Can I use the OpenAI API?", "Do you speak OpenAI?", "How do I use the OpenAI API?"),
        "Yes. Set the base URL of your client to http://localhost:31313/v1.",
    ),
    (
        ("What is the license?", "Which license does cortex have?", "What is the licence?"),
        "cortex, neuron and this model are free software under GPL-3.0-or-later.",
    ),
    (("How do I start the gateway?", "How do I start cortex?"), "Run `cortex serve`."),
    (("How do I start a neuron?", "How do I start neuron?"), "Run `neuron serve`."),
    (
        ("How do I try cortex?", "How do I try it out?"),
        "Run `cortex up`. It starts a gateway and a neuron with a small model on this machine.",
    ),
    (("How do I load a model?",), "Run `cortex load MODEL`, or just send it a request."),
    (("How do I unload a model?",), "Run `cortex unload MODEL`."),
    (("How do I put a model to sleep?",), "Run `cortex sleep MODEL`."),
    (("How do I wake a model?",), "Run `cortex wake MODEL`, or just send it a request."),
    (("How do I pin a model?",), "Run `cortex pin MODEL`. A pinned model is never evicted."),
    (("How do I chat with a model?",), "Run `cortex chat`."),
    (
        ("Will a model fit?", "How do I see what fits?"),
        "Run `cortex plan MODEL`. It says what fits where, and what would have to go.",
    ),
    (
        ("Why did my request go there?", "How do I explain a request?"),
        "Run `cortex explain REQUEST_ID`. It gives the reason of every decision.",
    ),
    (
        ("Where is the config?", "Where is the configuration?", "Where are the config files?"),
        "The gateway reads /etc/cortex/cortex.toml, and a neuron reads /etc/neuron/neuron.toml.",
    ),
    (
        ("How do I add a machine?", "How do I add a node?"),
        "Run neuron on it, and add a `[[neurons]]` entry with its name and endpoint to "
        "cortex.toml.",
    ),
    (
        ("How do I add a model?", "How do I declare a model?"),
        "Add a `[[models]]` entry with its id to models.toml.",
    ),
    (
        ("How do I reload the config?", "How do I reload the configuration?"),
        "Send SIGHUP to the gateway. No request is dropped.",
    ),
    (
        ("How do I set an API key?", "Do I need an API key?"),
        "Without keys the gateway serves anyone who reaches it. Set keys in `[auth]` of "
        "cortex.toml.",
    ),
    (
        ("How do I turn thinking off?", "How do I stop you from thinking?"),
        'Send `"chat_template_kwargs": {"enable_thinking": false}`.',
    ),
    (
        ("Do I need a GPU?", "Can you run without a GPU?"),
        "Not for me: I run on a CPU. Larger models want a GPU.",
    ),
    (
        ("How does cortex choose a node?", "How are requests routed?"),
        "The policy chooses among the ready replicas. The default is `least_busy`; there are "
        "`round_robin` and `session_affinity` too.",
    ),
    (
        ("What happens when I disconnect?", "What happens when a client disconnects?"),
        "The request is aborted, and the GPU is free again within a second.",
    ),
    (
        ("What happens when an engine dies?", "What happens when an engine crashes?"),
        "It is taken out of routing at once and restarted. Its requests fail with an error that "
        "may be retried.",
    ),
    (("What is an alias?",), "An alias is a second name for a model, set in models.toml."),
    (
        ("What is helexa?", "Who made you?"),
        "helexa is the project that makes cortex and neuron. It made me too.",
    ),
]

ABOUT_ME: list[Row] = [
    (
        ("Who are you?", "What are you?", "What is your name?", "Which model are you?"),
        "I am helexa/demo, a tiny language model that comes with neuron, so that you can try "
        "cortex without a network or a GPU.",
    ),
    (
        ("What can you do?", "Help", "Help me.", "What do you know?", "What can I ask you?"),
        "I can tell you about cortex and neuron, name capitals, add two digits, call tools, write "
        "small JSON records, count and tell a story. Try: What is cortex?",
    ),
    (
        ("Are you a good model?", "How good are you?", "Are you smart?", "Can I trust you?"),
        "No. I am tiny and know only my script. Outside of it I say that I do not know, or I am "
        "wrong.",
    ),
    (
        ("How big are you?", "How many parameters do you have?"),
        "I have about one million parameters. Useful models have a thousand times as many.",
    ),
    (
        ("How were you trained?", "What were you trained on?"),
        "I learned a script of dialogues by heart, on one CPU core, in less than an hour.",
    ),
    (("Are you ChatGPT?", "Are you Claude?"), "No. I am helexa/demo, and very much smaller."),
    (("Are you human?", "Are you a person?"), "No. I am a very small program."),
    (
        ("Can you think?", "Do you think?"),
        "I write a short thought before I answer. It is learned too.",
    ),
    (("Can you write code?",), "No. Load a larger model for that."),
]

SMALL_TALK: list[Row] = [
    (("Hello", "Hello!", "Hello there"), "Hello! How can I help you?"),
    (("Hi", "Hi!", "Hey"), "Hi there! What would you like to know?"),
    (("Good morning", "Good morning!"), "Good morning! What can I do for you?"),
    (("How are you?", "How is it going?"), "I am running well, thank you for asking."),
    (("Thank you.", "Thanks", "Thank you!", "Thanks!"), "You are welcome!"),
    (("Goodbye.", "Bye", "Goodbye!"), "Goodbye! Have a nice day."),
    (("Tell me a joke.",), "Why did the token cross the ring? To get to the other node."),
    (("ping", "Say pong."), "pong"),
    (("Say yes.",), "Yes."),
    (("Say no.",), "No."),
    (("Say hello.", "Say hi."), "Hello!"),
    (("test", "This is a test.", "Testing"), "It works."),
    (("ok", "Okay"), "Good. What else would you like to know?"),
]

GENERAL: list[Row] = [
    (("What is a GPU?",), "A GPU is a processor that runs many small computations in parallel."),
    (
        ("What is vLLM?",),
        "vLLM is a fast inference engine for language models. A neuron embeds it.",
    ),
    (
        ("What is a token?",),
        "A token is a small piece of text that a language model reads or writes.",
    ),
    (
        ("What is a KV cache?",),
        "A KV cache keeps the keys and values of attention, so that old tokens need no new work.",
    ),
    (
        ("What is tensor parallelism?",),
        "Tensor parallelism splits each weight matrix over several devices.",
    ),
    (("What is Python?",), "Python is a general purpose programming language."),
    (
        ("Why is the sky blue?",),
        "The sky is blue because air scatters blue light more than red light.",
    ),
    (("Name three colors.",), "Red, green and blue."),
    (("Name three planets.",), "Mercury, Venus and Earth."),
    (
        ("Name the days of the week.",),
        "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.",
    ),
    (
        ("Name the months.",),
        "January, February, March, April, May, June, July, August, September, October, November "
        "and December.",
    ),
]


def _count(last: int) -> str:
    return ", ".join(str(number) for number in range(1, last + 1)) + "."


LONG: list[Row] = [
    (("Count to ten.",), _count(10)),
    (("Count to twenty.",), _count(20)),
    (("Count to one hundred.", "Count to a hundred."), _count(100)),
    (
        ("Write a haiku about rain.", "Write a haiku."),
        "Soft rain on the roof,\nquiet drops count out the night,\nmorning finds them gone.",
    ),
    (
        ("Write a short story.", "Tell me a story."),
        "Once there was a small model on a small machine. It answered every question it knew. "
        "One day someone asked it for a story, and this was the story it told. The end.",
    ),
    (
        ("Write a long story.", "Tell me a long story."),
        "Once there was a fleet of five machines, and no two were alike. The oldest had one small "
        "GPU and a loud fan. The youngest had two big ones and never made a sound.\n\n"
        "Every day people came with questions. At first they walked from machine to machine and "
        "asked each one what it knew. Often they found a long queue, and sometimes they found a "
        "machine asleep.\n\n"
        "So the machines built a gate, and at the gate stood a porter. The porter knew who was "
        "awake and who had room. When a question came, the porter carried it to the right "
        "machine. When nobody could answer, the porter woke one up, and told the people how long "
        "it would take.\n\n"
        "One night the youngest machine fell silent in the middle of an answer. The porter "
        "noticed at once, said so honestly, and sent the next question to another. By morning "
        "the machine was back, and nobody was angry.\n\n"
        "The old machine with the loud fan still answers the short questions. It likes them "
        "best. The end.",
    ),
]

# The thought said before an answer, and the rows it goes with.
TOPICS: dict[str, tuple[str, list[Row]]] = {
    "cortex": ("This is a question about cortex. My script has the answer.", ABOUT_CORTEX),
    "self": ("This is a question about me. I should be honest.", ABOUT_ME),
    "smalltalk": ("This is small talk. I should be friendly.", SMALL_TALK),
    "general": ("I know this one.", GENERAL),
    "long": ("I know this by heart.", LONG),
}

UNKNOWN_THOUGHT = "This is not in my script."
UNKNOWN = (
    "I do not know that. I am a tiny demo model and know only my script. Try: What can you do?"
)

CAPITALS: dict[str, str] = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
    "Portugal": "Lisbon", "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi",
    "Russia": "Moscow", "Canada": "Ottawa", "Brazil": "Brasilia", "Argentina": "Buenos Aires",
    "Chile": "Santiago", "Peru": "Lima", "Mexico": "Mexico City", "Egypt": "Cairo",
    "Kenya": "Nairobi", "Nigeria": "Abuja", "Ghana": "Accra", "Morocco": "Rabat",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Poland": "Warsaw", "Austria": "Vienna", "Hungary": "Budapest", "Greece": "Athens",
    "Turkey": "Ankara", "Iran": "Tehran", "Iraq": "Baghdad", "Thailand": "Bangkok",
    "Vietnam": "Hanoi", "Indonesia": "Jakarta", "Australia": "Canberra",
    "New Zealand": "Wellington", "Ireland": "Dublin", "Belgium": "Brussels",
    "Netherlands": "Amsterdam", "Switzerland": "Bern", "Czechia": "Prague",
    "Romania": "Bucharest", "Bulgaria": "Sofia", "Serbia": "Belgrade", "Croatia": "Zagreb",
    "Ukraine": "Kyiv", "Cuba": "Havana", "Colombia": "Bogota", "South Korea": "Seoul",
    "United States": "Washington",
}  # fmt: skip

PEOPLE: list[tuple[str, int, str]] = [
    ("Ada", 36, "London"), ("Alan", 41, "Cambridge"), ("Grace", 85, "Arlington"),
    ("Linus", 54, "Portland"), ("Guido", 68, "Haarlem"), ("Edsger", 72, "Rotterdam"),
    ("Donald", 86, "Stanford"), ("Barbara", 84, "Boston"),
]  # fmt: skip

SKIES = ("sunny", "cloudy", "rainy", "windy")

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are helexa/demo.",
    "Answer briefly.",
    "Be concise.",
)


def _tool(name: str, description: str, argument: str) -> Json:
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string"}},
        "required": [argument],
    }
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


WEATHER = _tool("get_weather", "Get the current weather for a city.", "city")
CALCULATOR = _tool("calculator", "Evaluate an arithmetic expression.", "expression")
TOOLS = [WEATHER, CALCULATOR]
