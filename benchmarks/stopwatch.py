"""Times the phases of an update from outside, and runs a side's process; needs only torch.

A phase inside another one is taken out of it, so the phases of an update never overlap.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.workload import (
    Prompts,
    Report,
    Update,
    Workload,
    answered,
    check_logprobs,
    check_update,
    expected_answers,
    read_workload,
)

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "numpy")


class Stopwatch:
    """Collects what the updates of one side do, and refuses work that is not to be compared.

    Args:
        workload: What is to be done.
        report: Where the updates go.
    """

    def __init__(self, workload: Workload, report: Report) -> None:
        self.workload, self.report = workload, report
        self._expected = expected_answers(workload, Prompts.read(workload.prompts))
        self._cuda = workload.device == "cuda"
        self._open: list[str] = []
        self._mark = 0.0
        self.restart()

    def pass_gate(self, logprob_error: float) -> None:
        """Notes the log-prob error, and forgets how much memory it took to find it.

        Raises:
            GateError: It is too large.
        """
        self.report.logprob_error = logprob_error
        check_logprobs(self.workload, logprob_error)
        gc.collect()
        forget_peak_rss()

    def restart(self) -> None:
        """Begins an update: everything that is known of the last one is dropped."""
        self.phases: dict[str, float] = {}
        self._answered = answered([], [])
        self.optimizer_steps = 0
        self.losses: list[float] = []
        self.drift: float | None = None
        self._start = self._mark = self._now()

    def note_answers(self, prompt_ids: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        """Notes the prompts of the rollout and the tokens of the response to each, in one order."""
        self._answered = answered(prompt_ids, lengths)

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _lap(self) -> None:
        """Books the time since the last mark on the innermost open phase."""
        now = self._now()
        if self._open:
            name = self._open[-1]
            self.phases[name] = self.phases.get(name, 0.0) + now - self._mark
        self._mark = now

    def begin(self, name: str) -> None:
        """Books what follows on a phase, until ``end``."""
        self._lap()
        self._open.append(name)

    def end(self) -> None:
        """Ends the phase that was begun last."""
        self._lap()
        self._open.pop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Books the block on a phase."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    @property
    def innermost(self) -> str | None:
        """The phase that time is booked on."""
        return self._open[-1] if self._open else None

    def watch_optimizer(self, optimizer: Any) -> None:
        """Counts and times the steps that torch takes; give the optimizer below any wrapper."""
        step = optimizer.step

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.optimizer_steps += 1
            with self.phase("optimizer"):
                return step(*args, **kwargs)

        optimizer.step = counted

    def watch_prefill(self, model: Any) -> None:
        """Books passes over several tokens at once, while something generates, on the prefill."""
        forward = model.forward

        def split(*args: Any, **kwargs: Any) -> Any:
            ids = kwargs.get("input_ids")
            if self.innermost == "decode" and ids is not None and ids.shape[1] > 1:
                with self.phase("prefill"):
                    return forward(*args, **kwargs)
            return forward(*args, **kwargs)

        model.forward = split

    def finish_update(self) -> None:
        """Ends an update and begins the next.

        Raises:
            GateError: It was not the work that is to be compared.
        """
        seconds = self._now() - self._start
        phases = {name: value for name, value in self.phases.items() if value > 0}
        phases["other"] = max(seconds - sum(phases.values()), 0.0)
        update = Update(
            seconds=seconds,
            phases=phases,
            response_lengths=self._answered.response_lengths,
            prompts_hash=self._answered.prompts_hash,
            optimizer_steps=self.optimizer_steps,
            loss=sum(self.losses) if self.losses else float("nan"),
            drift=self.drift,
        )
        check_update(self.workload, update, self._expected)
        self.report.updates.append(update)
        self.restart()

    def conclude(self) -> Report:
        """Fills in memory and versions."""
        self.report.peak_rss_bytes = peak_rss_bytes()
        if self._cuda:
            self.report.peak_cuda_bytes = torch.cuda.max_memory_allocated()
        self.report.versions = {
            name: metadata.version(name)
            for name in _PACKAGES
            if any(True for _ in metadata.distributions(name=name))
        }
        return self.report


def run_side(run: Callable[[Workload], Report]) -> None:
    """Runs a side as a program that is given two files: the workload, and where the report goes.

    Args:
        run: Does the work of the side.
    """
    request, answer = sys.argv[1:]
    workload = read_workload(request)
    if workload.threads:
        torch.set_num_threads(workload.threads)
    run(workload).write(Path(answer))


def forget_peak_rss() -> None:
    """Lets the largest resident memory begin anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_rss_bytes() -> int:
    """Largest resident memory of this process since it began, or since that was forgotten."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def train_last_half(*models: Any) -> None:
    """Freezes everything but the last half of the layers, the last norm, and a value head."""
    for model in models:
        model.requires_grad_(False)
        base = model.base_model
        first = len(base.layers) - len(base.layers) // 2
        for part in [*list(base.layers)[first:], base.norm, *_heads(model)]:
            part.requires_grad_(True)


def _heads(model: Any) -> list[Any]:
    return [model.score] if hasattr(model, "score") else []


def mean_error(found: torch.Tensor, prompts: Prompts) -> float:
    """Mean absolute difference to the frozen log-probs (nats per token)."""
    expected = torch.tensor(prompts.logprobs)
    return float((found.detach().float().cpu() - expected).abs().mean())
