# SPDX-License-Identifier: GPL-3.0-or-later
"""What is the demo model made of: its tokenizer, its network, and its files."""

import copy
import json
import random
from pathlib import Path

import torch
from dialogues import dialogues
from practice import exercises, vocabulary
from script import CAPITALS, SYSTEM_PROMPTS, TOOLS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# Not "special": vLLM's parsers must see them in the decoded text.
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>",
           "</tool_response>", "<tools>", "</tools>")  # fmt: skip

CONTEXT = 4096


def _corpus() -> list[str]:
    texts = [json.dumps(TOOLS)] * 5 + list(SYSTEM_PROMPTS) * 5 + vocabulary() * 2
    for city in CAPITALS.values():
        texts += [json.dumps({"city": city}), f"in {city}, {city}"] * 3
    for dialogue in dialogues() + exercises(random.Random(11), 300):  # noqa: S311
        texts += [str(message["content"]) for message in dialogue.messages]
        texts += [dialogue.reasoning, dialogue.content]
        texts += [json.dumps({"name": n, "arguments": a}) for n, a in dialogue.calls]
    return texts


def build_tokenizer(vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE learned from the script; digits stand alone, each marker is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKERS),
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens([AddedToken(m, special=False, normalized=False) for m in MARKERS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=CONTEXT
    )
    fast.chat_template = Path(__file__).with_name("template.jinja").read_text().rstrip("\n")
    return fast


def build_network(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 network with weights drawn from torch's global generator."""
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return Qwen3ForCausalLM(config)


def rounded(network: Qwen3ForCausalLM) -> Qwen3ForCausalLM:
    """A copy in bfloat16, as it is shipped."""
    return copy.deepcopy(network).to(torch.bfloat16).eval()


def save(network: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write all files that an engine reads; other files in the folder stay."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    # The class that every transformers since 4.0 knows; newer ones write a newer name.
    _edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    shipped = rounded(network)
    shipped.config.use_cache = True
    shipped.save_pretrained(folder)
    # safetensors makes its files readable by their owner alone; these are packaged.
    (folder / "model.safetensors").chmod(0o644)
    generation = {
        "do_sample": False,
        "temperature": 0.0,
        "eos_token_id": [tokenizer.eos_token_id],
        "pad_token_id": tokenizer.pad_token_id,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def _edit(path: Path, **changes: str) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
