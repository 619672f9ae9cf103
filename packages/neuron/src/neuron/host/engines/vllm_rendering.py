# SPDX-License-Identifier: GPL-3.0-or-later
"""vLLM's rendering of prompts without an engine: templates, tokenizers and processors of media, but no weights.

Like `vllm_library`, it holds names that vLLM promises nothing about, and importing it takes seconds.
"""

from argparse import Namespace
from typing import Any

from starlette.datastructures import State
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.render.app_state import init_render_app_state


def configure(arguments: Namespace) -> Any:
    """As much of an engine's configuration as rendering needs. Raises as `vllm_library.configure`."""
    given = AsyncEngineArgs.from_cli_args(arguments)
    model = given.create_model_config()
    model.quantization = None  # its checks are about devices, which have no part in this
    return VllmConfig(
        model_config=model, structured_outputs_config=given.create_structured_outputs_config()
    )


class Rendering:
    """Stands where `vllm_library.Running` does, with nothing that runs.

    Attributes:
        state: the serving objects.
        died: an engine that is not there does not die.
    """

    died = False

    def __init__(self, config: Any) -> None:
        self.config = config
        self.state = State()

    async def build_serving(self, arguments: Namespace) -> None:
        """Make the serving objects."""
        await init_render_app_state(self.config, self.state, arguments)

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and answer together that one request may have."""
        return int(self.config.model_config.max_model_len)

    @property
    def sees(self) -> bool:
        """Whether the model takes images."""
        return bool(self.config.model_config.is_multimodal_model)
