# SPDX-License-Identifier: GPL-3.0-or-later
"""What a vLLM engine is doing: its own counts, and tokens per second over the last moments. Pure."""

from collections import deque

import msgspec

from neuron.host.messages import Activity, Counts

WINDOW_S = 5.0


class Load:
    """Gathers what the engine reports per step. The owner of these counts; it is told, and asked."""

    def __init__(self) -> None:
        self._running = 0
        self._kv_usage_ratio: float | None = None
        self._steps: deque[tuple[float, int, int]] = deque()
        self.counts = Counts()

    def note_scheduler(self, running: int, kv_usage_ratio: float) -> None:
        """The scheduler's counts after a step."""
        self._running = running
        self._kv_usage_ratio = kv_usage_ratio

    def note_cache(self, queries: int, hits: int) -> None:
        """Prompt tokens that a step looked for in the prefix cache, and found."""
        self._add(cache_queries=queries, cache_hits=hits)

    def note_tokens(self, now_s: float, prompt: int, generated: int, preemptions: int = 0) -> None:
        """Tokens that a step read and wrote, and requests that it set back."""
        self._add(prompt_tokens=prompt, generated_tokens=generated, preemptions=preemptions)
        self._steps.append((now_s, prompt, generated))
        self._forget(now_s)

    def note_finished(self, queue_s: float, prefill_s: float, decode_s: float) -> None:
        """A request that came to its end, and the seconds of its parts."""
        self._add(finished=1, queue_s=queue_s, prefill_s=prefill_s, decode_s=decode_s)

    def note_drafts(self, drafted: int, accepted: int) -> None:
        """Tokens that a step had guessed ahead, and that were right."""
        self._add(draft_tokens=drafted, accepted_tokens=accepted)

    def activity(self, now_s: float, unfinished: int) -> Activity:
        """The counts now.

        Args:
            now_s: monotonic seconds.
            unfinished: the engine's count of requests. The scheduler's own is as old as its last step: with
                nothing left to do it takes none, and would say for ever that an aborted request runs.
        """
        self._forget(now_s)
        running = min(self._running, unfinished)
        return Activity(
            running=running,
            waiting=unfinished - running,
            kv_usage_ratio=self._kv_usage_ratio if unfinished else 0.0,
            prefill_tokens_per_s=sum(step[1] for step in self._steps) / WINDOW_S,
            decode_tokens_per_s=sum(step[2] for step in self._steps) / WINDOW_S,
            counts=self.counts,
        )

    def _add(self, **more: float) -> None:
        totals = {name: getattr(self.counts, name) + number for name, number in more.items()}
        self.counts = msgspec.structs.replace(self.counts, **totals)

    def _forget(self, now_s: float) -> None:
        while self._steps and self._steps[0][0] <= now_s - WINDOW_S:
            self._steps.popleft()
