# SPDX-License-Identifier: GPL-3.0-or-later
"""What a spec means in vLLM's arguments."""

from typing import Any

import pytest

from cortex_core.control import ModelSpec
from neuron.host.engine import StartFailedError
from neuron.host.engines.vllm_options import (
    Settings,
    count_threads,
    plan_environment,
    plan_options,
    read_settings,
    write_arguments,
)
from neuron.host.messages import Start

MIB = 1024 * 1024


def options(settings: Settings | None = None, **spec: Any) -> dict[str, Any]:
    start = Start(
        spec=ModelSpec(model_id="hf:org/name", **spec),
        model_path="/models/name",
        socket="",
        run_dir="",
    )
    return plan_options(start, settings or Settings())


def test_answers_carry_the_id_that_was_loaded() -> None:
    found = options()
    assert (found["model"], found["served_model_name"]) == ("/models/name", "hf:org/name")


def test_a_gguf_file_is_the_model_and_its_folder_has_the_rest() -> None:
    found = options(Settings(gguf="q/m-Q8_0.gguf"), quant="Q8_0")
    assert (found["model"], found["tokenizer"]) == ("/models/name/q/m-Q8_0.gguf", "/models/name")
    assert "quantization" not in found
    assert options(quant="fp8")["quantization"] == "fp8"


@pytest.mark.parametrize(
    ("spec", "settings", "expected_mb"),
    [(None, None, 256), (None, 64, 64), (128, 64, 128), (128, None, 128)],
)
def test_the_kv_cache_always_has_a_size(
    spec: int | None, settings: int | None, expected_mb: int
) -> None:
    found = options(Settings(kv_cache_mb=settings), kv_cache_mb=spec)
    assert found["kv_cache_memory_bytes"] == expected_mb * MIB


def test_a_cpu_runs_eager_and_never_splits_a_prefill() -> None:
    found = options(Settings(platform="cpu", gpu_memory_utilization=0.5))
    assert found["enforce_eager"] is True
    assert found["enable_chunked_prefill"] is False
    assert found["dtype"] == "bfloat16"
    assert "gpu_memory_utilization" not in found


def test_cuda_is_left_to_vllm_but_for_its_share_of_the_memory() -> None:
    found = options(Settings(platform="cuda", gpu_memory_utilization=0.5))
    assert found["gpu_memory_utilization"] == 0.5
    assert not {"enforce_eager", "enable_chunked_prefill", "dtype"} & found.keys()


def test_the_spec_is_obeyed() -> None:
    found = options(
        Settings(max_model_len=4096),
        dtype="float32",
        tensor_parallel=2,
        max_model_len=2048,
        quant="fp8",
        chat_template="{{ x }}",
        engine_args={"max_num_seqs": 4, "enforce_eager": False},
    )
    assert found["dtype"] == "float32"
    assert found["tensor_parallel_size"] == 2
    assert found["max_model_len"] == 2048
    assert found["quantization"] == "fp8"
    assert found["chat_template"] == "{{ x }}"
    assert found["max_num_seqs"] == 4
    assert found["enforce_eager"] is False


def test_the_settings_answer_where_the_spec_is_silent() -> None:
    assert options(Settings(max_model_len=4096))["max_model_len"] == 4096
    assert "max_model_len" not in options()


@pytest.mark.parametrize(
    ("engine_args", "said"),
    [
        ({"trust_remote_code": True}, "engine_args has trust_remote_code"),
        ({"model": "x", "tokenizer": "y"}, "engine_args has model, tokenizer"),
        ({"enable_chunked_prefill": True}, "engine_args has enable_chunked_prefill"),
        ({"speculative_config": {"method": "eagle", "model": "a/b"}}, "the method `ngram` only"),
        ({"speculative_config": "ngram"}, "the method `ngram` only"),
        (
            {"speculative_config": {"method": "ngram", "model": "a/b"}},
            "speculative_config has model",
        ),
    ],
)
def test_what_is_not_on_the_list_is_refused(engine_args: dict[str, Any], said: str) -> None:
    with pytest.raises(StartFailedError, match=said) as raised:
        options(engine_args=engine_args)
    assert raised.value.kind == "invalid_spec"
    assert raised.value.suggestion


def test_the_refusal_names_what_is_allowed() -> None:
    with pytest.raises(StartFailedError) as raised:
        options(engine_args={"max_seqs": 3})
    assert "max_num_seqs" in raised.value.suggestion


def test_n_gram_speculation_is_allowed() -> None:
    ngram = {"method": "ngram", "num_speculative_tokens": 3}
    assert options(engine_args={"speculative_config": ngram})["speculative_config"] == ngram


@pytest.mark.parametrize(
    ("name", "value", "argument"),
    [
        ("max_num_seqs", 4, "--max-num-seqs=4"),
        ("enforce_eager", True, "--enforce-eager"),
        ("enforce_eager", False, "--no-enforce-eager"),
        ("chat_template", "--x {{ y }}", "--chat-template=--x {{ y }}"),
        ("override", {"a": [1]}, '--override={"a":[1]}'),
    ],
)
def test_arguments_are_those_of_the_command_line(name: str, value: Any, argument: str) -> None:
    assert write_arguments({name: value}) == [argument]


def test_settings_of_the_daemon_are_passed_over() -> None:
    assert read_settings({"platform": "cuda", "warm_spare": True}) == Settings(platform="cuda")


def test_a_setting_of_the_wrong_type_is_named() -> None:
    with pytest.raises(StartFailedError, match="kv_cache_mb"):
        read_settings({"kv_cache_mb": "much"})


def lora(platform: str, names: list[str], rank: int) -> dict[str, Any]:
    start = Start(spec=ModelSpec(model_id="m"), model_path="/m", socket="", run_dir="")
    settings = Settings(platform=platform, lora={name: f"/{name}" for name in names})
    return plan_options(start, settings, rank)


def test_adapters_are_told_to_the_engine_with_room_for_the_largest() -> None:
    found = lora("cuda", ["a", "b"], 12)
    assert found["enable_lora"] is True
    assert found["lora_modules"] == ['{"name":"a","path":"/a"}', '{"name":"b","path":"/b"}']
    assert (found["max_lora_rank"], found["max_loras"], found["max_cpu_loras"]) == (16, 2, 2)
    many = lora("cuda", [f"a{i}" for i in range(20)], 8)
    assert (many["max_loras"], many["max_cpu_loras"]) == (8, 20)
    assert "enable_lora" not in options()


def test_on_a_cpu_the_last_place_for_an_adapter_stays_empty() -> None:
    """The CPU engine computes requests of the model itself with what lies there, when an adapter runs beside them."""
    found = lora("cpu", [f"a{i}" for i in range(20)], 8)
    assert (found["max_loras"], found["max_cpu_loras"]) == (21, 21)


def test_media_is_fetched_from_where_it_may_and_never_from_anywhere() -> None:
    assert options(Settings(allowed_media_domains=["a.org"]))["allowed_media_domains"] == ["a.org"]
    assert options()["allowed_media_domains"] == ["none.invalid"]
    assert plan_environment(Settings(), "/s")["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"


def test_a_list_is_one_argument_after_the_other() -> None:
    assert write_arguments({"allowed_media_domains": ["a", "b"]}) == [
        "--allowed-media-domains",
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    ("ranks", "cores", "expected"),
    [(1, 1, 1), (1, 2, 1), (1, 8, 7), (2, 2, 1), (2, 8, 3), (4, 3, 1)],
)
def test_ranks_share_the_cores_but_one(ranks: int, cores: int, expected: int) -> None:
    assert count_threads(ranks, cores) == expected


def test_what_a_cpu_wants_is_not_set_for_cuda() -> None:
    cpu, cuda = (plan_environment(Settings(platform=name), "/s") for name in ("cpu", "cuda"))
    assert cpu.keys() - cuda.keys() == {
        "TORCHDYNAMO_DISABLE",
        "VLLM_CPU_OMP_THREADS_BIND",
        "VLLM_ENABLE_V1_MULTIPROCESSING",
    }
    assert cuda["VLLM_RPC_BASE_PATH"] == "/s"
