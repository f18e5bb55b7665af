"""What an update costs with N processes, from what it costs with one: a model, and its predictions.

``python -m benchmarks.cost_model RESULT.json`` reads what ``benchmarks.scaling`` measured and
prints, as Markdown, the measurement beside the prediction for it, and predictions for more
processes. The formulas are in docs/cost_model.md. Nothing is fitted to the times of the processes
that train together: these are what the model is held against.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

TOLERANCE = 0.15
"""Share by which a prediction may miss the time that was measured."""


@dataclass(frozen=True)
class Link:
    """What connects the processes."""

    bytes_per_s: float
    """Bytes that one process sends in a second, while it receives as many."""
    latency_s: float
    """Seconds that one message takes, however short."""

    def sum_s(self, size: float, processes: int) -> float:
        """Seconds to add up a tensor over the processes, in a ring.

        Each process sends 2 (N - 1) messages, of a share 1 / N of the tensor.

        Args:
            size: Bytes of the tensor.
            processes: N; one process adds nothing up.
        """
        messages = 2 * (processes - 1)
        return messages / processes * size / self.bytes_per_s + messages * self.latency_s

    @classmethod
    def measured(cls, large: tuple[float, float], small: tuple[float, float], n: int) -> Link:
        """The link by which two sums of different size took as long as they did.

        Args:
            large: Bytes of a large tensor, and the seconds of its sum.
            small: The same of a small one.
            n: Number of processes.

        Raises:
            ValueError: The large sum was not slower than the small one, or there is one process.
        """
        if n < 2 or large[0] <= small[0] or large[1] <= small[1]:
            raise ValueError(
                f"sums of {large} and {small} (bytes, seconds) over {n} processes: expected two or "
                "more processes, and more seconds for more bytes. Measure again on an idle machine."
            )
        messages = 2 * (n - 1)
        rate = messages / n * (large[0] - small[0]) / (large[1] - small[1])
        latency = (small[1] - messages / n * small[0] / rate) / messages
        return cls(rate, max(latency, 0.0))


@dataclass(frozen=True)
class Work:
    """An update of one process on its own, with a machine for itself."""

    rollout_s: float
    """Seconds to decode and score its episodes."""
    learning_s: float
    """Seconds of everything else: the passes, the steps, the bookkeeping."""
    steps: int
    """Optimizer steps; before each, gradients are summed."""
    gradient_bytes: float
    """Size of these gradients."""
    contention: float = 1.0
    """Factor by which it slows down beside the others, for sharing a machine; 1 with its own."""
    longest: float = 1.0
    """Longest rollout among the processes over their mean: 1 where all write as much."""

    @property
    def seconds(self) -> float:
        """Seconds of the update of one process on its own."""
        return self.rollout_s + self.learning_s

    def together_s(self, processes: int, link: Link) -> float:
        """Seconds of an update of N processes, each with as many episodes as this one (weak)."""
        own = self.contention * (self.longest * self.rollout_s + self.learning_s)
        alone = processes == 1
        reduce_s = 0.0 if alone else self.steps * link.sum_s(self.gradient_bytes, processes)
        return self.seconds if alone else own + reduce_s

    def efficiency(self, processes: int, link: Link) -> float:
        """Episodes per second and process, over those of one process on its own; at most 1."""
        return self.seconds / self.together_s(processes, link)


def calibrated(measured: Mapping[str, Any]) -> tuple[Work, Link]:
    """The model of one measured case.

    Args:
        measured: An entry of ``cases`` of ``benchmarks.scaling``.

    Raises:
        ValueError: The sums of gradients were not measured, or make no sense.
    """
    alone, link = measured["alone"], measured["link"]
    rollout = median(update["rollout_s"] + update["score_s"] for update in alone)
    seconds = median(update["seconds"] for update in alone)
    apart = median(update["seconds"] for update in measured["apart"])
    work = Work(
        rollout_s=rollout,
        learning_s=seconds - rollout,
        steps=measured["steps"],
        gradient_bytes=link["large_bytes"],
        contention=max(apart / seconds, 1.0),
    )
    large = (link["large_bytes"], link["large_s"])
    small = (link["small_bytes"], link["small_s"])
    return work, Link.measured(large, small, measured["processes"])


def check(measured: Mapping[str, Any]) -> dict[str, float]:
    """The model's prediction for the processes that trained together, and how far it was off.

    Returns:
        ``predicted_s``, ``measured_s`` and ``error``: predicted over measured, less 1.
    """
    work, link = calibrated(measured)
    predicted = work.together_s(measured["processes"], link)
    found = median(update["seconds"] for update in measured["together"])
    return {"predicted_s": predicted, "measured_s": found, "error": predicted / found - 1}


def markdown(
    result: Mapping[str, Any], counts: Sequence[int], bytes_per_s: float | None = None
) -> str:
    """The tables: what was measured beside its prediction, and predictions for more processes.

    Args:
        result: What ``benchmarks.scaling`` wrote.
        counts: Numbers of processes to predict for.
        bytes_per_s: Bandwidth of the link to predict for; None takes the measured one.
    """
    machine = result["machine"]
    lines = [
        f"Measured on {machine['cpu']}, {machine['cores']} cores, commit {result['commit']}, "
        f"{result['rounds']} rounds, one thread for each process.",
        "",
        "| model | processes | update, one process | beside another | together, measured "
        "| together, predicted | off by |",
        "|" + " --- |" * 7,
    ]
    predictions: list[str] = []
    for name, case in result["cases"].items():
        (work, link), found = calibrated(case), check(case)
        lines.append(
            f"| {name} | {case['processes']} | {work.seconds:.3g} s "
            f"| {work.seconds * work.contention:.3g} s | {found['measured_s']:.3g} s "
            f"| {found['predicted_s']:.3g} s | {found['error']:+.0%} |"
        )
        chosen = replace(link, bytes_per_s=bytes_per_s or link.bytes_per_s)
        own = replace(work, contention=1.0)
        predictions += [
            f"| {name} | {n} | {own.together_s(n, chosen):.3g} s | {own.efficiency(n, chosen):.2f} "
            f"| {chosen.bytes_per_s / 1e9:.3g} GB/s |"
            for n in counts
        ]
    lines += [
        "",
        "Predictions, not measured: as many episodes for each process, each on its own machine.",
        "",
        "| model | processes | update | efficiency | link |",
        "|" + " --- |" * 5,
        *predictions,
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; with --check it returns 1 when a prediction missed by too much."""
    made = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    made.add_argument("result", type=Path, help="JSON file of benchmarks.scaling")
    made.add_argument("--processes", nargs="+", type=int, default=[2, 4, 8, 16], help="N")
    made.add_argument("--bytes-per-s", type=float, help="bandwidth to predict for, e.g. 12.5e9")
    made.add_argument("--check", action="store_true", help=f"allow {TOLERANCE:.0%} at most")
    given = made.parse_args(arguments)
    result = json.loads(given.result.read_text(encoding="utf-8"))
    print(markdown(result, given.processes, given.bytes_per_s))
    off = [name for name, case in result["cases"].items() if abs(check(case)["error"]) > TOLERANCE]
    if given.check and off:
        print(
            f"predictions are off by more than {TOLERANCE:.0%}: {', '.join(off)}", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
