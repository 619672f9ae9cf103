# SPDX-License-Identifier: GPL-3.0-or-later
"""Models that say what a test wrote for them, on any tokenizer: real weights, and exact expectations.

The next token is looked up by the last one: the embeddings are the unit vectors, the one layer adds nothing, and the
output matrix joins the tokens that follow each other in a script. Each piece of a script is a
token of its own. Where scripts meet, in a marker, the request says which one goes on, by `logit_bias`.
"""

import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

HEAD = 64
# Characters of the shortest piece.
PIECE = 4
# More than the model itself gives to any token.
BIAS = 100.0


class Family(NamedTuple):
    """A tokenizer with its template.

    `special`: tokens that are no text; the last one ends a turn. `added`: markers that are text.
    """

    special: tuple[str, ...]
    added: tuple[str, ...]
    template: str


# No thinking. A call is bare JSON, or comes after a token.
LLAMA = Family(
    special=(
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|python_tag|>",
        "<|eot_id|>",
    ),
    added=(),
    template="""{{ '<|begin_of_text|>' }}
{%- if messages[0].content == 'Fail' %}{{ raise_exception('it takes no such message') }}{% endif %}
{%- if tools %}{{ 'Tools:\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}
{%- for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}
{%- if m.tool_calls %}{% for c in m.tool_calls %}{% for k in c.function.arguments %}{{ k }}{% endfor %}{% endfor %}
{%- else %}{{ m.content }}{% endif %}{{ '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
)
# The model opens its reasoning itself; all markers are special.
MISTRAL = Family(
    special=(
        "<s>",
        "[INST]",
        "[/INST]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[THINK]",
        "[/THINK]",
        "[TOOL_CALLS]",
        "[ARGS]",
        "</s>",
    ),
    added=(),
    template="""{{ '<s>' }}{% if tools %}{{ '[AVAILABLE_TOOLS]' }}{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{{ '</s>' }}
{%- else %}{{ '[INST]' + m.content + '[/INST]' }}{% endif %}{% endfor %}""",
)
# The template opens the reasoning, or closes it at once; calls are written as XML.
XML = Family(
    special=("<|im_start|>", "<|im_end|>"),
    added=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    template="""{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}
{{- '<tool_call>\n<function=name>\n<parameter=key>\n...' }}{{ '<|im_end|>\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{{ m.content or '' }}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '\n\n</think>\n\n' }}{% else %}{{ '\n' }}{% endif %}{% endif %}""",
)


class Scripted(NamedTuple):
    """A model on disk, what to ask it with to hear each of its scripts, and its markers' tokens."""

    path: Path
    bias: Mapping[str, Mapping[str, float]]
    markers: Mapping[str, int]


def write_tokenizer(path: Path, family: Family, scripts: Mapping[str, str]) -> dict[str, list[str]]:
    """Write a tokenizer that knows each script's pieces; the pieces by script."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    markers = family.special + family.added
    used: set[str] = set()
    pieces = {name: list(_cut(text, markers, used)) for name, text in scripts.items()}
    made.add_special_tokens([AddedToken(text, special=True) for text in family.special])
    texts = dict.fromkeys([*family.added, *(p for cut in pieces.values() for p in cut)])
    made.add_tokens([AddedToken(t, normalized=False) for t in texts if t not in family.special])
    path.mkdir(parents=True, exist_ok=True)
    made.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": family.special[-1],
        "additional_special_tokens": list(family.special),
        "chat_template": family.template,
        "clean_up_tokenization_spaces": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return pieces


def _cut(text: str, markers: tuple[str, ...], used: set[str]) -> Iterator[str]:
    """Pieces of a script: markers are whole, and others occur once in all scripts where there is room for that."""
    for part in re.split(f"({'|'.join(map(re.escape, markers))})", text):
        if part in markers:
            yield part
            continue
        while part:
            length = PIECE
            while part[:length] in used and length < len(part):
                length += 1
            if len(part) - length < PIECE:
                length = len(part)
            used.add(part[:length])
            yield part[:length]
            part = part[length:]


def write_model(path: Path, family: Family, scripts: Mapping[str, str]) -> Scripted:
    """Write a model of a family that can say the scripts."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    pieces = write_tokenizer(path, family, scripts)
    tokenizer = AutoTokenizer.from_pretrained(path)
    end = tokenizer.convert_tokens_to_ids(family.special[-1])
    spoken = {name: [*tokenizer.convert_tokens_to_ids(cut), end] for name, cut in pieces.items()}
    size = -(-len(tokenizer) // HEAD) * HEAD
    follows = torch.zeros(size, size, dtype=torch.bfloat16)
    for tokens in spoken.values():
        for last, after in pairwise(tokens):
            follows[after, last] = 2
        for begin in _prompt_ends(tokenizer):
            follows[tokens[0], begin] = max(follows[tokens[0], begin], 1)
    for tokens in spoken.values():
        for last, after in pairwise(tokens):
            rivals = [token for token in set(tokens) if follows[token, last] == 2]
            assert rivals == [after], "two scripts meet where no bias parts them"
    save_file(_weights(size, follows), path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(_config(size, end)))
    bias = {name: dict.fromkeys(map(str, tokens), BIAS) for name, tokens in spoken.items()}
    markers = family.special + family.added
    return Scripted(path, bias, {text: tokenizer.convert_tokens_to_ids(text) for text in markers})


def _prompt_ends(tokenizer: Any) -> set[int]:
    """The tokens that a prompt can end in."""
    said = [{"role": "user", "content": "Hello"}]
    return {
        tokenizer.apply_chat_template(
            said, add_generation_prompt=True, return_dict=False, enable_thinking=thinking
        )[-1]
        for thinking in (False, True)
    }


def _weights(size: int, follows: Any) -> dict[str, Any]:
    import torch

    one = torch.ones(size, dtype=torch.bfloat16)
    nothing = torch.zeros(size, size, dtype=torch.bfloat16)
    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": torch.eye(size, dtype=torch.bfloat16),
        "lm_head.weight": follows,
        "model.norm.weight": one.clone(),
        f"{layer}input_layernorm.weight": one.clone(),
        f"{layer}post_attention_layernorm.weight": one.clone(),
        f"{layer}self_attn.q_proj.weight": nothing.clone(),
        f"{layer}self_attn.k_proj.weight": nothing[:HEAD].clone(),
        f"{layer}self_attn.v_proj.weight": nothing[:HEAD].clone(),
        f"{layer}self_attn.o_proj.weight": nothing.clone(),
        f"{layer}mlp.gate_proj.weight": nothing[:HEAD].clone(),
        f"{layer}mlp.up_proj.weight": nothing[:HEAD].clone(),
        f"{layer}mlp.down_proj.weight": nothing[:, :HEAD].clone(),
    }


def _config(size: int, end: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size,
        "hidden_size": size,
        "intermediate_size": HEAD,
        "num_hidden_layers": 1,
        "num_attention_heads": size // HEAD,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": end,
    }


class Heard(NamedTuple):
    """An answer, whole or streamed. `calls`: name and arguments of each."""

    content: str | None = None
    reasoning: str | None = None
    calls: tuple[tuple[str, Any], ...] = ()
    finish: str = "stop"


class Speaker:
    """A scripted model that is up.

    Args:
        model: the running Model.
        scripted: what it runs.
    """

    def __init__(self, model: Any, scripted: Scripted) -> None:
        self.model = model
        self._scripted = scripted

    def _read_bias(self, script: str, unless: str | None = None) -> dict[str, float]:
        never = {} if unless is None else {str(self._scripted.markers[unless]): -BIAS}
        return {**self._scripted.bias[script], **never}

    async def ask(self, script: str, *, unless: str | None = None, **fields: Any) -> Any:
        """The answer to a request for a script. `unless`: a marker that is not to come."""
        fields = {"logit_bias": self._read_bias(script, unless), **fields}
        return await self.model.chat(fields.pop("said", "Hello"), **fields)

    async def ask_responses(self, script: str, **fields: Any) -> Any:
        """The same of the Responses API."""
        asked = {
            "input": "Hello",
            "temperature": 0,
            "store": False,
            "logit_bias": self._read_bias(script),
        }
        return await self.model.post("/v1/responses", {**asked, **fields})

    async def hear(self, script: str, **fields: Any) -> Heard:
        """What a client hears of a script; streamed where `stream` says so."""
        answer = await self.ask(script, **fields)
        assert answer.status == 200, answer.body
        if fields.get("stream"):
            return read_stream(self.model.read_stream(answer))
        return read_whole(answer.json)


def read_whole(answer: Any) -> Heard:
    """What a whole answer of one choice says."""
    (choice,) = answer["choices"]
    message = choice["message"]
    calls = message.get("tool_calls", [])
    assert all(call["id"] and call["type"] == "function" for call in calls)
    return Heard(
        message["content"],
        message.get("reasoning_content"),
        tuple(_read_call(call["function"]) for call in calls),
        choice["finish_reason"],
    )


def read_stream(chunks: list[Any]) -> Heard:
    """What the chunks of a stream say together, read as a client reads them."""
    texts = {"content": "", "reasoning_content": ""}
    calls: list[dict[str, str]] = []
    for chunk in chunks:
        (choice,) = chunk["choices"]
        for name in texts:
            texts[name] += choice["delta"].get(name, "")
        for part in choice["delta"].get("tool_calls", []):
            if "name" in part["function"]:
                assert (part["index"], part["type"]) == (len(calls), "function")
                assert part["id"]
                calls.append({"name": part["function"]["name"], "arguments": ""})
            calls[part["index"]]["arguments"] += part["function"].get("arguments", "")
    finish = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert finish[:-1] == [None] * (len(chunks) - 1)
    return Heard(
        texts["content"] or None,
        texts["reasoning_content"] or None,
        tuple(map(_read_call, calls)),
        finish[-1],
    )


def _read_call(function: Mapping[str, str]) -> tuple[str, Any]:
    """Name and arguments; those that are not JSON as text."""
    try:
        return function["name"], json.loads(function["arguments"])
    except ValueError:
        return function["name"], function["arguments"]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": properties},
        },
    }
    for name, properties in (
        (
            "get_weather",
            {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "hot": {"type": "boolean"},
            },
        ),
        ("get_time", {"place": {"type": "string"}}),
    )
]
RECORD = {
    "type": "json_schema",
    "json_schema": {
        "name": "record",
        "schema": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        },
    },
}


@contextlib.asynccontextmanager
async def start_speaker(
    folders: pytest.TempPathFactory,
    start_model: Callable[..., Awaitable[Any]],
    family: Family,
    scripts: Mapping[str, str],
    **spec: Any,
) -> AsyncIterator[Speaker]:
    """Write a scripted model, and run it until the block ends."""
    scripted = write_model(folders.mktemp("scripted"), family, scripts)
    model = await start_model(folders.mktemp("run"), model_path=scripted.path, **spec)
    try:
        yield Speaker(model, scripted)
    finally:
        await model.engine.stop()
