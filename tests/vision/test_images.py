# SPDX-License-Identifier: GPL-3.0-or-later
"""Images as input, through a whole neuron, to a tiny random Qwen2.5-VL: read, refused, and fetched where that is allowed."""

import asyncio
import base64
import importlib.util
import io
import json
import os
import random
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import neuron
from cortex_core.testing import Scripted, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("default"),  # of vLLM's and torch's own code
]

MISSING = [name for name in ("vllm", "torchvision") if importlib.util.find_spec(name) is None]
if MISSING and os.environ.get("CI") == "true":
    raise RuntimeError(f"{MISSING[0]} is not installed, and CI must not go without it")
if MISSING:
    pytest.skip(f"not run: {MISSING[0]} is not installed", allow_module_level=True)

MODEL = "test/sees"
# Rounding could decide in bfloat16, and two ranks add up in another order than one.
SPEC = {"model_id": MODEL, "dtype": "float32"}
# The same files.
SPLIT = {**SPEC, "model_id": "test/sees-by-two", "tensor_parallel": 2}
DEMO_PATH = Path(neuron.__file__).parent / "demo"
MARKERS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == "text" %}{{ part.text }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
<|im_start|>assistant
"""
TEXT = {
    "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e4},
    "initializer_range": 0.1,  # so that what it says depends on the picture
}  # fmt: skip
# A token is a square of two by two patches, so of 28 by 28 pixels.
VISION = {
    "depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 128,
    "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
    "fullatt_block_indexes": [1], "initializer_range": 0.1,
}  # fmt: skip
PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
    "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 784, "max_pixels": 200_704,
}  # fmt: skip
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"


def make_model(folder: Path) -> None:
    """A Qwen2.5-VL with random weights, and the demo model's tokenizer with the markers of images."""
    import torch
    from tokenizers import AddedToken, Tokenizer
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = Tokenizer.from_file(str(DEMO_PATH / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    start, end, image, video = (tokenizer.token_to_id(marker) for marker in MARKERS)
    text = {"vocab_size": tokenizer.get_vocab_size(), "bos_token_id": None, "eos_token_id": 2}
    ids = {"vision_start_token_id": start, "vision_end_token_id": end}
    ids |= {"image_token_id": image, "video_token_id": video}
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config=TEXT | text, vision_config=VISION, tie_word_embeddings=False, **ids
    )
    Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    own = json.loads((DEMO_PATH / "tokenizer_config.json").read_text())
    own["tokenizer_class"] = "Qwen2TokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def seeing(open_fleet: Any) -> AsyncIterator[Any]:
    """A neuron with the model, which may fetch images from 127.0.0.1."""
    async with open_fleet() as fleet:
        await asyncio.to_thread(make_model, fleet.folder / "models" / MODEL)
        (fleet.folder / "models" / SPLIT["model_id"]).symlink_to(Path(MODEL).name)
        settings = 'allowed_media_domains = ["127.0.0.1"]\nwarm_spare = true\nkv_cache_mb = 64\n'
        where = f'model_dirs = ["{fleet.folder}/models"]\n'
        daemon = await fleet.neuron(config=f"[harness.vllm]\n{settings}{where}")
        daemon.counted_by_files = await count_by_files(daemon)
        status, _, body = await daemon.post("/models/load", SPEC)
        assert status == 200, body
        daemon.gateway = await fleet.gateway(daemon)
        await daemon.gateway.until("/v1/models", lambda models: models["data"][0]["loaded"])
        yield daemon


async def count_by_files(daemon: Any) -> int:
    """What a prompt with an image costs, while the model is not up."""
    asked = asking(CHAT, as_uri(draw(112, 112)))
    count_request = {"spec": SPEC, "request": {"messages": asked["messages"]}}
    status, _, body = await daemon.post("/models/count", count_request)
    assert status == 200, body
    count: int = json.loads(body)["count"]
    return count


def draw(width: int, height: int) -> bytes:
    """A picture as PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


def noise(width: int, height: int) -> bytes:
    """A picture of nothing, the same each time."""
    from PIL import Image

    out = io.BytesIO()
    data = random.Random(width).randbytes(3 * width * height)  # noqa: S311 - no secret
    Image.frombytes("RGB", (width, height), data).save(out, "PNG")
    return out.getvalue()


def claim(width: int, height: int) -> bytes:
    """A few bytes that say they are a picture of that size."""
    chunks = b"\x89PNG\r\n\x1a\n"
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(data)) + kind + data
        chunks += struct.pack(">I", zlib.crc32(kind + data))
    return chunks


def as_uri(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def asking(path: str, url: str | None) -> dict[str, Any]:
    """A request with a word, and an image after it."""
    asked: dict[str, Any] = {"model": MODEL, "temperature": 0}
    if path == RESPONSES:
        part: dict[str, Any] = {"type": "input_image", "image_url": url}
        content = [{"type": "input_text", "text": "see"}, *([part] if url else [])]
        return {**asked, "max_output_tokens": 4, "input": [{"role": "user", "content": content}]}
    part = {"type": "image_url", "image_url": {"url": url}}
    content = [{"type": "text", "text": "see"}, *([part] if url else [])]
    return {**asked, "max_tokens": 4, "messages": [{"role": "user", "content": content}]}


async def ask(daemon: Any, path: str, url: str | None) -> tuple[int, Any]:
    status, _, body = await daemon.post(path, asking(path, url))
    return status, json.loads(body)


async def count_prompt(daemon: Any, path: str, url: str | None) -> int:
    status, answer = await ask(daemon, path, url)
    assert status == 200, answer
    usage = answer["usage"]
    assert usage.get("completion_tokens", usage.get("output_tokens")) == 4
    return int(usage.get("prompt_tokens", usage.get("input_tokens")))


async def test_it_says_that_it_sees(seeing: Any) -> None:
    (entry,) = (await seeing.get("/v1/models"))["data"]
    assert {"text", "vision"} <= set(entry["capabilities"])


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize(("side", "tokens"), [(56, 4), (112, 16)])
async def test_an_image_is_read_as_tokens_of_the_prompt(
    seeing: Any, path: str, side: int, tokens: int
) -> None:
    without = await count_prompt(seeing, path, None)
    with_image = await count_prompt(seeing, path, as_uri(draw(side, side)))
    assert with_image == without + tokens + 2  # and the markers around it


async def test_the_tokens_of_an_image_can_be_counted(seeing: Any) -> None:
    asked = asking(CHAT, as_uri(draw(112, 112)))
    _, _, body = await seeing.post("/tokenize", {"model": MODEL, "messages": asked["messages"]})
    cost = await count_prompt(seeing, CHAT, as_uri(draw(112, 112)))
    assert json.loads(body)["count"] == seeing.counted_by_files == cost


@pytest.mark.parametrize("in_a_result", [False, True])
async def test_anthropic_s_count_of_an_image_is_what_it_costs(
    seeing: Any, in_a_result: bool
) -> None:
    data = base64.b64encode(draw(112, 112)).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    seen = {"type": "image", "source": source}
    turns: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "see"}, seen]}]
    if in_a_result:
        call = {"type": "tool_use", "id": "c", "name": "look", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "c", "content": [seen]}
        turns[1:] = [
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ]
        turns[0] = {"role": "user", "content": "look"}
    asked = {"model": MODEL, "messages": turns}
    path = "/v1/messages"
    status, _, body = await seeing.gateway.post(f"{path}/count_tokens", asked)
    assert status == 200, body
    counted = json.loads(body)["input_tokens"]
    status, _, body = await seeing.gateway.post(path, {**asked, "max_tokens": 4, "temperature": 0})
    assert status == 200, body
    usage = json.loads(body)["usage"]
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"] > 18


BAD: dict[str, tuple[str, str]] = {
    "no picture": ("data:image/png;base64,AAAA", "cannot identify image"),
    "half a picture": (as_uri(draw(200, 200)[:-80]), "image"),
    "no base64": ("data:image/png;base64,!!!!", "base64"),
    "another encoding": ("data:image/png,abc", "base64"),
    "no data": ("data:", "','"),
    "more pixels than may be": (as_uri(claim(8000, 8000)), "64000000 pixels"),
    "a bomb": (as_uri(claim(60_000, 60_000)), "decompression bomb"),
    "a file": ("file:///etc/passwd", "not by `file:`"),
    "another scheme": ("ftp://127.0.0.1/a.png", "not by `ftp:`"),
    "elsewhere": ("http://localhost:1/a.png", "fetched from 127.0.0.1 only"),
    "nobody there": ("http://127.0.0.1:1/a.png", "its media cannot be read"),
}


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize(("url", "says"), BAD.values(), ids=BAD.keys())
async def test_what_is_no_image_is_refused(seeing: Any, path: str, url: str, says: str) -> None:
    status, answer = await ask(seeing, path, url)
    assert (status, answer["error"]["code"]) == (400, "invalid_request_body"), answer
    assert says in answer["error"]["message"]


async def test_images_that_are_too_many_are_a_prompt_that_is_too_long(seeing: Any) -> None:
    asked = asking(CHAT, as_uri(draw(448, 448)))
    asked["messages"][0]["content"] *= 6
    status, _, body = await seeing.post(CHAT, asked)
    assert (status, json.loads(body)["error"]["code"]) == (400, "context_length_exceeded")
    health = await seeing.get("/health")
    assert health["models"][0]["status"] == "loaded"


async def test_an_image_is_fetched_from_where_that_is_allowed(seeing: Any) -> None:
    picture = draw(56, 56)
    server = Scripted(lambda _: (200, [(b"content-type", b"image/png")], [picture]))
    async with serving(server) as endpoint:
        fetched = await count_prompt(seeing, CHAT, f"{endpoint}/a.png")
    assert fetched == await count_prompt(seeing, CHAT, as_uri(picture))
    assert [path for _, path, _, _ in server.asked] == ["/a.png"]


async def see(daemon: Any, spec: dict[str, Any], picture: bytes) -> str:
    """What a model says of a picture, greedily."""
    asked = {**asking(CHAT, as_uri(picture)), "model": spec["model_id"], "max_tokens": 12}
    status, _, body = await daemon.post(CHAT, asked)
    assert status == 200, body
    answer = json.loads(body)
    return str(answer["choices"][0]["message"]["content"])


async def test_two_ranks_see_what_one_sees(seeing: Any) -> None:
    status, _, body = await seeing.post("/models/load", SPLIT)
    assert status == 200, body
    pictures = [draw(56, 56), draw(112, 112), noise(112, 112), noise(196, 56)]
    alone = [await see(seeing, SPEC, picture) for picture in pictures]
    assert len(set(alone)) == len(pictures)  # it does look
    together = await asyncio.gather(*(see(seeing, SPLIT, picture) for picture in pictures))
    assert together == alone


async def test_no_redirect_is_followed(seeing: Any) -> None:
    elsewhere = Scripted(lambda _: (200, [], [draw(56, 56)]))
    async with serving(elsewhere) as other:
        server = Scripted(lambda _: (302, [(b"location", other.encode())], []))
        async with serving(server) as endpoint:
            status, answer = await ask(seeing, CHAT, f"{endpoint}/a.png")
    assert (status, answer["error"]["code"]) == (400, "invalid_request_body")
    assert len(server.asked) == 1
    assert elsewhere.asked == []
