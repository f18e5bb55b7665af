"""The reward of code that works: what a response defines is run against tests, in a sandbox."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

from instructrec.errors import ConfigError, DataError
from instructrec.rewards.base import FailedScore
from instructrec.rewards.code_tests import Judge, Verdict, read_cases
from instructrec.rewards.sandbox import Limits, Sandbox
from instructrec.rewards.sandbox_process import NotRun
from instructrec.rewards.text import completion_texts

Find = Literal["auto", "fence", "whole"]
"""Where the code of a response is; see ``find_code``."""

_FENCE = "```"
_OURS = ("", "python", "python3", "py")  # what a fence may be marked as


class CodeExecution:
    """The share of tests that the code of a response passes, or 1.0 for all of them.

    The column ``cases`` holds calls and their results, ``tests`` holds test code (assertions, or a
    function ``check(candidate)``); a sample has one or the other, and one without is left out. The
    column ``function`` names the function under test, and ``prefix`` is code in front of the
    response.

    Code that raises, breaks a limit, ends its process or answers with anything but plain data has
    not passed; that is a score. A sandbox that the machine does not start or keep alive is a
    failure.

    Args:
        run_model_code: Has to be true: this reward runs what a model writes.
        score: ``all`` gives 1.0 when every test passes and else 0.0, ``fraction`` gives their
            share, and 0.0 where the code breaks a limit or ends its process.
        find: Where the code is: the last ``fence`` marked as Python or not at all, the ``whole``
            response, or ``auto``: a fence if there is one.
        timeout_s: Seconds for all tests of a response.
        memory_mb: Most address space of the code in MiB.
        output_kb: Most that it may print, and most of one result, in KiB.
        disk_mb: Most that its files may hold in MiB; 0 lets it write none.
        tolerance: Largest difference of two floats, absolute or relative.
        workers: Responses that are tested side by side; None takes the number of processors.
        bubblewrap: Whether bubblewrap is added: ``auto`` where it works, ``require``, ``never``.
        interpreter: Path of the Python that runs the code; None takes the one of this process.
        dangerously_run_without_sandbox: Runs the code with all rights of this user. Its results
            are still data, and its limits of time and memory hold; nothing else does.

    Raises:
        ConfigError: ``run_model_code`` is not set, or another option is wrong.
        SandboxError: This machine cannot confine code.
    """

    __name__ = "code_execution"

    def __init__(
        self,
        *,
        run_model_code: bool = False,
        score: Literal["all", "fraction"] = "all",
        find: Find = "auto",
        timeout_s: float = 5.0,
        memory_mb: int = 512,
        output_kb: int = 64,
        disk_mb: int = 0,
        tolerance: float = 1e-9,
        workers: int | None = None,
        bubblewrap: Literal["auto", "never", "require"] = "auto",
        interpreter: str | None = None,
        dangerously_run_without_sandbox: bool = False,
    ) -> None:
        if not run_model_code:
            raise ConfigError(
                "reward 'code_execution' runs code that a model writes, and is off until you say "
                "so: set its option run_model_code: true. docs/code_execution.md says what the "
                "sandbox holds and what it does not."
            )
        if tolerance < 0 or (workers is not None and workers < 1):
            raise ConfigError(
                f"reward 'code_execution': tolerance = {tolerance}, workers = {workers}; expected "
                "at least 0, and at least 1."
            )
        self.find, self.score = find, score
        self.workers = workers or processors()
        limits = Limits(timeout_s, memory_mb, output_kb, disk_mb)
        confined = not dangerously_run_without_sandbox
        sandbox = Sandbox(limits, bubblewrap=bubblewrap, interpreter=interpreter, confined=confined)
        self.judge = Judge(sandbox, tolerance, stop_early=score == "all")

    def __call__(
        self,
        completions: Sequence[Any],
        cases: Sequence[Any] | None = None,
        tests: Sequence[str | Sequence[str] | None] | None = None,
        function: Sequence[str | None] | None = None,
        prefix: Sequence[str | None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Scores B responses.

        Args:
            completions: B responses.
            cases: B lists of cases as for ``read_cases``; None in a sample without.
            tests: B pieces of test code, or lists of them; None in a sample without.
            function: B names; with ``cases`` alone, None takes the last function of the code.
            prefix: B pieces of code that responses continue; tests may build on them.
            **columns: Not read.

        Returns:
            B scores in [0, 1]; None without tests; a ``FailedScore`` where the machine failed.

        Raises:
            DataError: The columns hold no tests that could be run.
        """
        verdicts = self.verdicts(completions, cases, tests, function, prefix)
        return [self._scored(verdict) for verdict in verdicts]

    def verdicts(
        self,
        completions: Sequence[Any],
        cases: Sequence[Any] | None = None,
        tests: Sequence[str | Sequence[str] | None] | None = None,
        function: Sequence[str | None] | None = None,
        prefix: Sequence[str | None] | None = None,
    ) -> list[Verdict | FailedScore | None]:
        """Tests B responses and says more than a score: what passed, and why the rest did not."""
        if cases is None and tests is None:
            raise DataError(
                "reward 'code_execution' needs a column of tests: cases (calls and results) or "
                "tests (test code). To read another one, set its option cases_column or "
                "tests_column."
            )
        calls = [
            self._prepared(
                *(i, find_code(text, self.find)),
                *(None if column is None else column[i] for column in (cases, tests)),
                *(None if column is None else column[i] for column in (function, prefix)),
            )
            for i, text in enumerate(completion_texts(completions))
        ]
        with ThreadPoolExecutor(self.workers, thread_name_prefix="code") as pool:
            return list(pool.map(_outcome, calls))

    def _prepared(
        self, i: int, code: str | None, cases: Any, tests: Any, function: Any, prefix: Any
    ) -> Callable[[], Verdict] | None:
        """What is to be done for one sample, its columns read; None where there are no tests."""
        if cases is not None and tests is not None:
            raise DataError(f"reward 'code_execution': sample {i} has both cases and tests.")
        if cases is None and tests is None:
            return None
        prefix = "" if prefix is None else str(prefix)
        program = prefix + ("" if not prefix or prefix.endswith("\n") else "\n") + (code or "")
        if cases is not None:
            known = read_cases(cases, i)
            if code is None:
                return partial(Verdict, 0, len(known), "no code was found")
            return partial(self.judge.by_cases, program, function, known)
        pieces = [tests] if isinstance(tests, str) else list(tests)
        if not pieces or not all(isinstance(piece, str) for piece in pieces):
            raise DataError(
                f"reward 'code_execution': the tests of sample {i} are {str(tests)[:80]!r}; "
                "expected code, or a list of pieces of it."
            )
        if not isinstance(function, str):
            raise DataError(
                f"reward 'code_execution': sample {i} has tests and no name in the column "
                "function; to read another column, set function_column."
            )
        if code is None:
            return partial(Verdict, 0, len(pieces), "no code was found")
        return partial(self.judge.by_tests, program, function, pieces, prefix)

    def _scored(self, verdict: Verdict | FailedScore | None) -> float | None:
        if verdict is None or isinstance(verdict, FailedScore):
            return verdict
        return float(verdict.ok) if self.score == "all" else verdict.passed / verdict.total


def find_code(response: str, find: Find) -> str | None:
    """Returns the code of a response.

    Args:
        response: Its text.
        find: ``fence`` takes the last fenced block that is marked as Python or not at all (an open
            one goes to the end), ``whole`` takes everything, ``auto`` a block where there is one.

    Returns:
        The code; None where a fence was asked for and there is none.
    """
    if find == "whole":
        return response
    found, marked, lines = None, None, list[str]()
    for line in [*response.split("\n"), _FENCE]:
        if not line.lstrip().startswith(_FENCE):
            lines.append(line)
            continue
        if marked in _OURS:
            found = "\n".join(lines)
        # A fence closes the block that is open, else it opens one.
        marked = None if marked is not None else line.strip().lstrip("`").strip().lower()
        lines = []
    if found is None and find == "auto":
        return response
    return found


def processors() -> int:
    """Returns how many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _outcome(call: Callable[[], Verdict] | None) -> Verdict | FailedScore | None:
    try:
        return None if call is None else call()
    except NotRun as error:
        return FailedScore(error.status, f"the sandbox: {error}")
