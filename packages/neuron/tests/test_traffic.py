# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio

from neuron.traffic import Link, Traffic


async def test_a_link_is_drained_when_its_last_request_has_ended() -> None:
    link = Link("unix:/nowhere")
    assert await link.drained(0)
    with link.request():
        with link.request():
            pass
        assert not await link.drained(0)
        waiting = asyncio.create_task(link.drained(5))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting


async def test_a_link_that_is_gone_is_not_found() -> None:
    traffic, link = Traffic(), Link("unix:/nowhere")
    traffic.note_open("m", link)
    assert traffic.find("m") is link
    traffic.note_gone("m")
    assert link.gone.is_set()
    assert traffic.find("m") is None
