"""What is said to people, also when nobody is there any more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from instructrec.experiments import telling
from instructrec.experiments.progress import Progress

LINES = """
import sys
from instructrec.experiments import telling
from instructrec.experiments.progress import Progress
sys.stdin.read()  # until the readers of the output have gone
for number in range(3):
    telling.say("a line " * 2000)
    with Progress(10) as progress:
        progress.note("another one " * 2000)
        progress.update({"train/update": 1.0, "reward/total/mean": 0.5})
open(sys.argv[1], "w").write("went on")
"""


def test_a_reader_that_leaves_ends_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LINES, str(tmp_path / "end.txt")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stderr.close()
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "end.txt").read_text() == "went on"


def test_a_locale_without_the_character_ends_nothing() -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    program = (
        "import sys; from instructrec.experiments import cli, telling\n"
        "cli._dispatch = lambda _: telling.say('1 \\u00d7 exact_match')\n"
        "sys.exit(cli.main(['tasks']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.strip() == rb"1 \xd7 exact_match"


def test_lines_are_printed_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    telling.say("one")
    Progress(3, quiet=True).note("not shown")
    assert capsys.readouterr().out == "one\n"
