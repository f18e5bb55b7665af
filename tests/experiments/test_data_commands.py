"""``instructrec data``: what a data set holds, what is wrong with it, and how it looks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.experiments.cli import main
from instructrec.rl.rollout import instruction_order

ROWS: list[Any] = [
    {"instruction": f"Please say the number {n} aloud.", "output": str(n)} for n in range(40)
]


def write(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "data.jsonl", ROWS)


def facts(text: str) -> dict[str, str]:
    """The two-column lines of a table."""
    pairs = [re.split(r" {2,}", line, maxsplit=1) for line in text.splitlines()]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def test_a_good_file_is_profiled(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", data]) == 0
    found = facts(capsys.readouterr().out)
    assert found["rows"] == "40, of which 40 are used"
    assert found["shapes"] == "40 alpaca"
    assert found["same instruction twice"] == found["held out and in training"] == "0"
    assert found["languages of 40 rows"] == "40 en"
    assert found["instruction, characters"].split() == ["30", "31", "31", "31"]
    assert found["reference"].split() == ["40", "str", "2,", "2"]
    splits = [int(part.split()[0]) for part in found["splits"].split(", ")]
    assert sum(splits) == 40 and splits[0] > 20


def test_every_bad_row_is_named_and_the_command_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*ROWS[:3], "{broken", *ROWS[3:], {"instruction": "no answer"}, '{"instruction": "x"']
    assert main(["data", "check", write(tmp_path / "data.jsonl", rows)]) == 3
    printed = capsys.readouterr()
    for place in ("line 4: not valid JSON", "line 42: expected either", "line 43: not valid JSON"):
        assert place in printed.out
    assert "3 of 43 rows cannot be used" in printed.err and "on_bad_row: skip" in printed.err
    assert facts(printed.out)["rows"] == "43, of which 40 are used"


def test_copies_leaks_and_invisible_characters_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": "Hello you", "split": "train"},
        {"prompt": "hello  YOU", "split": "train"},
        {"prompt": "Hello you", "split": "test"},
        {"prompt": "a\u200bb\u202e", "split": "test"},
        {"prompt": "1 + 1\n= ?", "split": "test"},
    ]
    assert main(["data", "check", write(tmp_path / "data.jsonl", rows)]) == 0
    found = facts(capsys.readouterr().out)
    assert found["same instruction twice"] == "2"
    assert found["held out and in training"] == "1"
    assert found["invisible characters"] == "1"
    assert found["splits"] == "2 train, 0 validation, 3 test"
    assert found["languages of 5 rows"] == "5 unknown"  # two words tell none


def test_options_and_tokens(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "count.py").write_text("def words(text):\n    return len(text.split())\n")
    command = ["data", "check", data, "--tokenizer", f"{tmp_path / 'count.py'}:words"]
    command += ["--options.template", "question", "--options.few_shot", "2", "--languages", "0"]
    assert main(command) == 0
    found = facts(capsys.readouterr().out)
    assert found["instruction, tokens"].split() == ["8", "8", "8", "8"]
    assert found["reference, tokens"].split() == ["1", "1", "1", "1"]
    assert found["left out: few_shot"] == "2"
    assert not any(name.startswith("languages") for name in found)


def test_a_preview_shows_what_a_policy_sees(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "preview", data, "--number", "1", "--start", "3"]
    assert main([*command, "--options.template", "question"]) == 0
    head, *rest = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\[row 3 of 40\] id [0-9a-f]{16}", head)
    assert rest == [
        "",
        "Question: Please say the number 3 aloud.",
        "Answer:",
        "",
        "reference = '3'",
    ]


def test_a_preview_writes_invisible_characters_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "data.jsonl", [{"prompt": "a\x1b[31m\u202eb", "note": "c\x07"}])
    assert main(["data", "preview", path]) == 0
    printed = capsys.readouterr().out
    assert "a\\x1b[31m\\u202eb" in printed and "note = 'c\\x07'" in printed


def test_a_preview_follows_the_order_of_a_training(
    data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "preview", data, "--split", "train", "--seed", "5", "--start", "30"]
    assert main([*command, "--number", "4"]) == 0
    shown = re.findall(r"\[episode \d+: row (\d+) of", capsys.readouterr().out)
    size = len(make_task(data, split="train"))
    assert [*map(int, shown)] == instruction_order(size, 5, 30, 34)


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["check", "missing.jsonl"], 3, "does not exist"),
        (["check", "parity"], 2, "'parity' is no data set"),
        (["check", "DATA", "--options.template", "questoin"], 2, "Did you mean 'question'?"),
        (["check", "DATA", "--options.templat", "question"], 2, "Did you mean 'template'?"),
        (["check", "DATA", "--languages", "-1"], 2, "expected 0 or more"),
        (["preview", "DATA", "--start", "40"], 2, "the data has rows 0 to 39"),
        (["preview", "DATA", "--number", "0"], 2, "one instruction or more"),
        (["preview", "DATA", "--split", "trian"], 2, "Did you mean 'train'?"),
        (["chekc", "DATA"], 2, "chekc"),
    ],
)
def test_a_mistake_is_one_line_that_helps(
    data: str,
    arguments: list[str],
    code: int,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [data if argument == "DATA" else argument for argument in arguments]
    assert main(["data", *given]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line
