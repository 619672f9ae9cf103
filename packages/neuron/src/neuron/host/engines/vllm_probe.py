# SPDX-License-Identifier: GPL-3.0-or-later
"""Mixed into vLLM's workers: what do the logits look like, and how much memory is free? Costs nothing until it is asked."""

import os
from collections import deque
from typing import Any

import torch

MIB = 1024 * 1024
# Between two times that they are taken.
MAX_STEPS = 512


class Probe:
    """Looks at the logits of the next steps, between `begin_logits_probe` and `end_logits_probe`; and at memory."""

    # vLLM's worker, which this is mixed into, has it.
    model_runner: Any

    def begin_memory_trace(self) -> None:
        """Note from now on what is free at the end of each step."""
        runner = self.model_runner
        execute = runner.execute_model
        self._free_mb: deque[int] = deque(maxlen=MAX_STEPS)

        def trace(*args: Any, **kwargs: Any) -> Any:
            done = execute(*args, **kwargs)
            self._free_mb.append(self.describe_memory()["free_mb"])
            return done

        runner.execute_model = trace

    def take_memory_trace(self) -> list[int]:
        """MiB that were free at the end of each step since the last time."""
        taken = list(self._free_mb)
        self._free_mb.clear()
        return taken

    def describe_memory(self) -> dict[str, int]:
        """MiB that are free on this rank's device, and that it has; on the CPU, of the machine."""
        if torch.cuda.is_available():
            free_bytes, total_bytes = torch.cuda.mem_get_info()
        else:
            free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            total_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return {"free_mb": free_bytes // MIB, "total_mb": total_bytes // MIB}

    def begin_logits_probe(self) -> None:
        """Look from now on."""
        runner, model = self.model_runner, self.model_runner.model
        execute, compute = runner.execute_model, model.compute_logits
        self._execute = execute
        self._logits_seen: list[dict[str, Any]] = []
        phase = ""

        def step(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal phase
            phase = name_phase(scheduled)
            return execute(scheduled, *args, **kwargs)

        def look(*args: Any, **kwargs: Any) -> Any:
            logits = compute(*args, **kwargs)
            if logits is not None:  # a rank that has none
                self._logits_seen.append({"phase": phase, **describe_logits(logits)})
            return logits

        runner.execute_model, model.compute_logits = step, look

    def end_logits_probe(self) -> list[dict[str, Any]]:
        """Look no longer; what was seen, a step each."""
        self.model_runner.execute_model = self._execute
        del self.model_runner.model.compute_logits
        return self._logits_seen


def name_phase(scheduled: Any) -> str:
    """`prefill` where a step of vLLM's scheduler reads prompts, `decode` where it writes, `mixed` where it does both."""
    written = scheduled.scheduled_cached_reqs.num_output_tokens
    reads = bool(scheduled.scheduled_new_reqs) or 0 in written
    if reads and any(written):
        return "mixed"
    return "prefill" if reads else "decode"


def describe_logits(logits: torch.Tensor) -> dict[str, float]:
    """Counts of what is no number, or negative; smallest, largest and mean of what is finite, 0 where nothing is."""
    values = logits.detach().float()
    finite = values[torch.isfinite(values)]
    if not finite.numel():
        finite = torch.zeros(1)
    return {
        "nan": int(values.isnan().sum()),
        "pos_inf": int(values.isposinf().sum()),
        "neg_inf": int(values.isneginf().sum()),
        "negative": int((values < 0).sum()),
        "finite_min": round(float(finite.min()), 4),
        "finite_max": round(float(finite.max()), 4),
        "finite_mean": round(float(finite.mean()), 4),
    }
