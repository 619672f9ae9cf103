# SPDX-License-Identifier: GPL-3.0-or-later
"""How everything logs: structlog, set up once; pretty on a terminal, one JSON object per line otherwise.

An event is a short constant phrase, facts are fields. Never prompts, answers or keys, at any level.
FIELDS lists the names of fields, so that one thing has one name; a shape test holds the code to it.
"""

import logging
import sys
from typing import Any

import structlog

FIELDS = frozenset(
    """
    address attempt bytes_in bytes_out changed client_gone code completion_tokens config cuda daemon decision device
    devices dialect driver_version duration_s endpoint engines error error_code exit_code fallback_of finite_max
    finite_mean finite_min free_mb full_attention_layers harness harnesses head_dim hidden_size host_ram_mb joined kind
    kv_bytes_per_token kv_cache_mb left line linear_layers load_s load_wait_s max_model_len max_position_embeddings
    method misses model models nan needed_mb neg_inf negative neurons node num_kv_heads num_layers path phase pid
    pos_inf prompt_tokens python rank reason request_id retry_after_s revision running served_model settings signal
    size_mb sleep_s source status stream total_mb ttft_s upstream variable version vocab_size vram_free_mb waited_s
    wake_s wire
    """.split()
)


def setup(*, level: str = "info", as_json: bool | None = None) -> None:
    """Send every log of this process, ours and the libraries', to standard error.

    Args:
        level: the least that is shown: debug, info, warning or error; trace is debug, and has those who know of it
            tell more.
        as_json: None: JSON unless standard error is a terminal.
    """
    level = "debug" if level == "trace" else level
    if as_json is None:
        as_json = not sys.stderr.isatty()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks without the values of variables, which both renderers would print: prompts are among them.
    tracebacks = structlog.processors.ExceptionRenderer(
        structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    )
    last: list[Any] = (
        [tracebacks, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.getLogger("hypercorn").setLevel(
        logging.WARNING
    )  # it announces each socket; we log our own line


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a module: `log = logs.get(__name__)`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return logger
