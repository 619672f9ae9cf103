# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks HTTP is tested on each event loop that the daemons may run on."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

ON_EACH_LOOP = {"test_client", "test_cycle", "test_inbound", "test_inbound_refusals", "test_pool"}


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return loops if item.path.stem in ON_EACH_LOOP else {"asyncio": loops["asyncio"]}
