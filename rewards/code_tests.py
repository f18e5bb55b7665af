"""Testing code that a model wrote: by calls with known results, or by test code.

The code and what is expected of it never meet. Calls go into the sandbox one at a time, their
results come out as data, and this process compares. Test code runs in a second sandbox, where the
function under test only passes on its arguments; so the code cannot reach what judges it.
"""

from __future__ import annotations

import ast
import json
import marshal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from instructrec.errors import DataError
from instructrec.rewards.sandbox import Sandbox
from instructrec.rewards.sandbox_process import CodeFault, SandboxProcess
from instructrec.rewards.sandbox_values import same

_KEYS = {"args", "kwargs", "expected"}


@dataclass(frozen=True)
class Case:
    """One call and what it should return."""

    args: tuple[Any, ...]
    """Arguments by position."""
    expected: Any
    """The right result: plain data."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments by name."""


@dataclass(frozen=True)
class Verdict:
    """How some code did."""

    passed: int
    """Tests that it passed; 0 where it broke a limit, died or forged an answer."""
    total: int
    """Tests that there are, at least 1."""
    reason: str = ""
    """Why the first other one did not pass; written by hostile code in part."""

    @property
    def ok(self) -> bool:
        """Whether all of them passed."""
        return self.passed == self.total


@dataclass(frozen=True)
class Judge:
    """Tests programs in sandboxes.

    Args:
        sandbox: Where they run.
        tolerance: Largest difference of two floats; see ``same``.
        stop_early: Whether the first test that fails ends the others.
    """

    sandbox: Sandbox
    tolerance: float = 1e-9
    stop_early: bool = True

    def by_cases(self, program: str, function: str | None, cases: Sequence[Case]) -> Verdict:
        """Calls a function of a program and compares what it returns.

        Args:
            program: The code.
            function: Name of the function; None takes the last one that the code defines.
            cases: At least one.

        Raises:
            NotRun: The machine failed, not the code.
        """
        passed, reason = 0, ""
        try:
            with self.sandbox.start() as process:
                kind, value = process.ask("program", program, function)
                if kind != "defined":
                    return Verdict(0, len(cases), str(value))
                for number, case in enumerate(cases, start=1):
                    kind, value = process.ask(case.args, dict(case.kwargs))
                    if kind == "value" and same(value, case.expected, self.tolerance):
                        passed += 1
                        continue
                    reason = reason or f"case {number}: {_shown(kind, value)}"
                    if self.stop_early:
                        break
        except CodeFault as fault:
            return Verdict(0, len(cases), str(fault))
        return Verdict(passed, len(cases), reason)

    def by_tests(
        self, program: str, function: str, tests: Sequence[str], preamble: str = ""
    ) -> Verdict:
        """Runs test code against a function of a program.

        Args:
            program: The code.
            function: Name of the function; the tests call it by this name or as ``candidate``.
            tests: Pieces of code that raise when something is wrong. A piece that defines
                ``check(candidate)`` has it called.
            preamble: Code that the tests build on.

        Raises:
            NotRun: The machine failed, not the code.
            DataError: The tests cannot be run, whatever the code.
        """
        passed, reason = 0, ""
        try:
            with self.sandbox.start() as process:
                kind, value = process.ask("program", program, function)
                if kind != "defined":
                    return Verdict(0, len(tests), str(value))
                with self.sandbox.start() as tester:
                    kind, value = _prepared(tester, preamble, function)
                    for number, test in enumerate(tests, start=1):
                        if kind != "fault":
                            kind, value = self._passing_on(tester, process, test)
                        if kind == "fault":
                            raise DataError(f"test {number} of {function!r} cannot run: {value}")
                        if kind == "passed":
                            passed += 1
                            continue
                        reason = reason or f"test {number}: {_shown(kind, value)}"
                        if self.stop_early:
                            break
        except CodeFault as fault:
            return Verdict(0, len(tests), str(fault))
        return Verdict(passed, len(tests), reason)

    def _passing_on(
        self, tester: SandboxProcess, process: SandboxProcess, test: str
    ) -> tuple[str, Any]:
        """Runs one test; carries its calls to the code, and the results back, as data."""
        kind, value = tester.ask(test)
        while kind == "call":
            arguments, keywords = value
            kind, value = tester.reply(*process.ask(arguments, keywords))
        return kind, value


def read_cases(value: Any, index: int) -> list[Case]:
    """Reads the cases of one sample.

    Args:
        value: A list of mappings with ``args`` (a list), ``expected`` and, if wanted, ``kwargs``;
            or text that is such a list as JSON or in Python's literals, which know tuples and sets.
        index: Position of the sample in the batch, for errors.

    Raises:
        DataError: It is none of these.
    """
    where = f"reward 'code_execution': the cases of sample {index}"
    if isinstance(value, str):
        value = _parsed(value, where)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise DataError(
            f"{where} are {str(value)[:80]!r}; expected a list such as "
            '[{"args": [1, 2], "expected": 3}], or text of one.'
        )
    cases = []
    for case in value:
        if not isinstance(case, Mapping) or not {"args", "expected"} <= set(case) <= _KEYS:
            raise DataError(
                f"{where}: {str(case)[:80]!r}; expected args, expected and perhaps kwargs."
            )
        args, kwargs = case["args"], case.get("kwargs") or {}
        if not isinstance(args, list | tuple) or not isinstance(kwargs, Mapping):
            raise DataError(f"{where}: args is a list, and kwargs a mapping, not {case!r:.80}.")
        try:
            marshal.dumps((tuple(args), dict(kwargs)))
        except ValueError as error:
            raise DataError(f"{where}: arguments are plain data, not {case!r:.80}.") from error
        cases.append(Case(tuple(args), case["expected"], dict(kwargs)))
    return cases


def _prepared(tester: SandboxProcess, preamble: str, function: str) -> tuple[str, Any]:
    """Runs what tests build on, before any code of a model has a say."""
    try:
        return tester.ask("tests", preamble, function)
    except CodeFault as fault:
        return "fault", f"what it builds on: {fault}"


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise DataError(
            f"{where} are the text {text[:80]!r}, which is neither JSON nor a Python literal."
        ) from error


def _shown(kind: str, value: Any) -> str:
    """What came back, as short text."""
    if kind != "value":
        return str(value)[:120]
    try:
        return f"returned {ascii(value)[:120]}"
    except ValueError:  # Python does not write integers of thousands of digits
        return f"returned a very large {type(value).__name__}"
