"""Whether the tests notice when a safety is gone: each is taken out of a copy of the code in turn.

``python -m benchmarks.mutations`` copies the working tree, sees that the tests which
``mutations.toml`` names pass there, and then, safety by safety, replaces the text that
makes it, runs the one test that guards it, and expects that test to fail. A text that is no longer
found, a test that does not run here and a mutated file that is no Python are told apart from a
safety that nothing guards.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CARRIED = (
    *("benchmarks", "docs", "envs", "experiments", "policies", "rewards", "rl", "src", "tests"),
    *("pyproject.toml", "README.md", "Makefile"),
)
"""What of the working tree the tests need."""
TIMEOUT_S = 280.0
"""Seconds for one test; a safety whose loss makes its test hang is noticed, too."""


@dataclass(frozen=True)
class Mutation:
    """A safety, how it is taken out, and the test that has to fail then."""

    safety: str
    """What is taken out."""
    file: str
    """Where it stands, from the root."""
    test: str
    """The test, as ``file::function``."""
    old: str
    """Text that makes the safety; the file holds it once."""
    new: str = ""
    """What stands there instead."""


def read_mutations() -> list[Mutation]:
    """Reads the list of all mutations."""
    with Path(__file__).with_name("mutations.toml").open("rb") as content:
        return [Mutation(**entry) for entry in tomllib.load(content)["mutation"]]


NOTICED, SURVIVED = "noticed", "SURVIVED"
STALE, BROKEN, SKIPPED = "TEXT NOT FOUND", "NOT MEASURED", "does not run here"
GOOD = (NOTICED, SKIPPED)
"""Verdicts that are no reason to look closer."""


@dataclass(frozen=True)
class Verdict:
    """What became of one mutation."""

    mutation: Mutation
    """The safety, and how it was taken out."""
    outcome: str
    """``NOTICED`` or one of the others."""
    detail: str = ""
    """Why, where it was not noticed."""


def copy_tree(place: Path) -> Path:
    """Copies the working tree as far as tests need it; links stay links."""
    place.mkdir()
    for name in CARRIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, place / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy2(source, place / name)
    return place


def text_problem(mutation: Mutation, tree: Path) -> str:
    """Why a mutation cannot be made in a tree; empty where it can.

    Args:
        mutation: The mutation.
        tree: Root of a working tree.
    """
    file = tree / mutation.file
    if not file.is_file():
        return f"{mutation.file} is not there"
    content = file.read_text(encoding="utf-8")
    if (count := content.count(mutation.old)) != 1:
        return f"{mutation.file} holds the text {count} times, expected once: {mutation.old!r}"
    try:
        ast.parse(content.replace(mutation.old, mutation.new), mutation.file)
    except SyntaxError as error:
        return f"{mutation.file} would be no Python: {error}"
    return ""


@contextmanager
def mutated(mutation: Mutation, tree: Path) -> Iterator[None]:
    """Has the mutation in the tree while the block lasts."""
    file = tree / mutation.file
    content = file.read_text(encoding="utf-8")
    file.write_text(content.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        yield
    finally:
        file.write_text(content, encoding="utf-8")


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, dict[str, set[str]], str]:
    """Runs tests in a tree, by the code of that tree.

    Args:
        tree: Root of a working tree.
        tests: ``file::function``; all parameters of each are run.

    Returns:
        pytest's exit code, the outcomes (``passed``, ``failed``, ``skipped``) of the cases of each
        test, and what was printed.
    """
    report = tree / "report.xml"
    report.unlink(missing_ok=True)
    known = {name: os.environ[name] for name in os.environ if not name.startswith("PYTEST")}
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p"]
    command += ["no:xdist", "--junitxml", str(report), "-o", "junit_family=xunit1", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env={**known, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S * (1 + len(tests) / 10),
        )
    except subprocess.TimeoutExpired:
        return 1, {test: {"failed"} for test in tests}, "it hung"
    outcomes: dict[str, set[str]] = {}
    for case in ET.parse(report).iter("testcase") if report.is_file() else ():
        name = f"{case.get('file')}::{str(case.get('name')).partition('[')[0]}"
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "passed"
        outcomes.setdefault(name, set()).add("skipped" if "skipped" in kinds else outcome)
    return done.returncode, outcomes, (done.stdout + done.stderr)[-2000:]


def judge(mutation: Mutation, tree: Path, before: dict[str, set[str]]) -> Verdict:
    """Takes a safety out of a tree and says whether its test notices.

    Args:
        mutation: The safety.
        tree: A copy of the working tree.
        before: Outcomes of the tests while all safeties are in.
    """
    if problem := text_problem(mutation, tree):
        return Verdict(mutation, STALE, problem)
    unharmed = before.get(mutation.test, set())
    if unharmed == {"skipped"}:
        return Verdict(mutation, SKIPPED)
    if "passed" not in unharmed or "failed" in unharmed:
        return Verdict(mutation, BROKEN, f"{mutation.test} does not pass as the code is")
    with mutated(mutation, tree):
        code, outcomes, output = run_tests(tree, [mutation.test])
    found = outcomes.get(mutation.test, set())
    if code == 1 and "failed" in found:
        return Verdict(mutation, NOTICED)
    if code == 0:
        return Verdict(mutation, SURVIVED, f"{mutation.test} passes all the same")
    return Verdict(mutation, BROKEN, f"pytest ended with code {code}: {output[-300:]}")


def check(
    mutations: Sequence[Mutation], say: Callable[[str], None] = lambda line: None
) -> list[Verdict]:
    """Tries all mutations; returns a verdict for each.

    Args:
        mutations: What is tried.
        say: Receives a line for each as it is known.
    """
    with tempfile.TemporaryDirectory(prefix="instructrec-mutations-") as folder:
        tree = copy_tree(Path(folder) / "tree")
        _, before, _ = run_tests(tree, sorted({mutation.test for mutation in mutations}))
        verdicts = []
        for number, mutation in enumerate(mutations, start=1):
            verdicts.append(judge(mutation, tree, before))
            detail = f" ({verdicts[-1].detail})" if verdicts[-1].detail else ""
            say(f"{number}/{len(mutations)}  {mutation.safety}: {verdicts[-1].outcome}{detail}")
    return verdicts


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as Markdown."""
    lines = ["| safety that was taken out | file | test | outcome |", "| --- | --- | --- | --- |"]
    for verdict in verdicts:
        m = verdict.mutation
        name = m.test.partition("::")[2]
        detail = re.sub(r"[|\n]", " ", f": {verdict.detail}" if verdict.detail else "")
        lines.append(f"| {m.safety} | `{m.file}` | `{name}` | {verdict.outcome}{detail} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the check; returns 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutations", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", default=[""], help="safeties whose names hold one of these texts"
    )
    parser.add_argument("--list", action="store_true", help="show them and look for their texts")
    given = parser.parse_args(arguments)
    chosen = [m for m in read_mutations() if any(text in m.safety for text in given.only)]
    if given.list:
        problems = [text_problem(mutation, ROOT) for mutation in chosen]
        for mutation, problem in zip(chosen, problems, strict=True):
            print(f"{mutation.safety}: {problem or mutation.test}")
        return int(any(problems))
    verdicts = check(chosen, say=lambda line: print(line, flush=True))
    bad = [verdict for verdict in verdicts if verdict.outcome not in GOOD]
    print(f"{len(verdicts) - len(bad)} of {len(verdicts)} as they should be")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
