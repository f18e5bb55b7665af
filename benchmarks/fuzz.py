"""Parsers and sinks on text without sense: no error may come out but those that are documented.

``python -m benchmarks.fuzz`` tries each target of ``benchmarks.fuzz_targets`` with 2,000 values
that Hypothesis draws. ``make soak`` does so as load L11, and the tests do with a few values each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

from benchmarks.fuzz_targets import Target, targets

EXAMPLES = 2_000
"""Values for each target in the full load."""


def attempt(target: Target, examples: int, number: int = 0) -> None:
    """Tries a target.

    Args:
        target: What is tried.
        examples: How many values it gets.
        number: Seed of the values.

    Raises:
        Exception: What it should not have raised, with the smallest value that makes it.
    """

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @seed(number)
    @given(target.values)
    def run(value: Any) -> None:
        try:
            target.work(value)
        except target.errors:
            return

    run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Tries all targets; returns 1 where one raised what it should not have."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="values for each target")
    parser.add_argument("--seed", type=int, default=0, help="seed of the values")
    parser.add_argument("--only", default="", help="targets whose names hold this text")
    chosen = parser.parse_args(arguments)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for target in targets(Path(folder)):
            if chosen.only not in target.name:
                continue
            said = problem(target, chosen.examples, chosen.seed)
            wrong += bool(said)
            print(f"{target.name}: {said or 'fine'}", flush=True)
    return int(bool(wrong))


def problem(target: Target, examples: int, number: int = 0) -> str:
    """What a target did wrong, with the smallest value that makes it; empty where all is well."""
    try:
        attempt(target, examples, number)
    except Exception as error:
        notes = " ".join(getattr(error, "__notes__", []))
        return " ".join(f"{type(error).__name__}: {error} {notes}".split())[:600]
    return ""


if __name__ == "__main__":
    sys.exit(main())
