"""Places where a run can be made to die: each is named once, used, and does what it says."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from instructrec.crash_points import CRASH_POINTS, VARIABLE, crash_point, listening

PROGRAM = """
from instructrec.crash_points import crash_point
for number in (1, 2, 3):
    print(number, flush=True)
    crash_point("rows.half", lambda: print("last words", flush=True))
"""


def named_in(path: Path) -> list[str]:
    """Arguments of all calls of ``crash_point`` in a file."""
    code = path.read_text(encoding="utf-8")
    return [
        ast.literal_eval(node.args[0])
        for node in (ast.walk(ast.parse(code)) if "crash_point(" in code else ())
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "crash_point"
    ]


def test_every_place_is_in_the_table_and_in_the_code_once(root: Path) -> None:
    folders = ("rewards", "envs", "policies", "rl", "experiments")
    used = [name for f in folders for path in (root / f).rglob("*.py") for name in named_in(path)]
    assert sorted(used) == sorted(CRASH_POINTS)
    assert len(CRASH_POINTS) >= 16


def test_the_table_of_the_documentation_names_them_all(root: Path) -> None:
    page = (root / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    for name, truth in CRASH_POINTS.items():
        assert f"| `{name}` | {truth} |" in page


@pytest.mark.parametrize(
    ("wanted", "said", "code"),
    [
        ("rows.half", "1\nlast words\n", -9),
        ("rows.half:2", "1\n2\nlast words\n", -9),
        ("rows.half:3:TERM", "1\n2\n3\nlast words\n", -15),
        ("rows.half:4", "1\n2\n3\n", 0),
        ("prune.half", "1\n2\n3\n", 0),
    ],
)
def test_a_process_dies_at_the_named_place_and_time(wanted: str, said: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, VARIABLE: wanted},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == (said, code), done.stderr


def test_a_listener_hears_of_places_and_nobody_dies() -> None:
    heard: list[str] = []
    with listening(heard.append):
        crash_point("run.created")
    crash_point("run.created")
    assert heard == ["run.created"]
