"""`instructrec rewards`: show, check and score from the command line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from instructrec.errors import ConfigError, DataError, RewardError
from instructrec.experiments.cli import main
from instructrec.experiments.score_file import ScoreConfig, score_file

ROWS = [
    {"id": "a", "prompt": "1+1?", "response": "2", "reference": "2"},
    {"id": "b", "prompt": "1+2?", "response": "4", "reference": "3"},
    {"id": "c", "prompt": "hi?", "response": "hello", "reference": None},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def scores(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# list, show, check --------------------------------------------------------------------------------


def test_show_names_range_columns_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "show", "bleu"]) == 0
    printed = capsys.readouterr().out
    for part in ("[0, 1]", "reference", "lowercase: bool = False", "'13a' | 'intl'", "sacrebleu"):
        assert part in printed
    assert main(["rewards", "show", "gate"]) == 0
    assert "(required)" in capsys.readouterr().out


def test_check_ends_with_the_code_of_reward_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def good(completions, **columns):\n    return [0.5 for _ in completions]\n"
        "def bad(completions, kind, **columns):\n"
        "    return [1.0 / len(completions) for _ in completions]\n"
    )
    data = write(tmp_path / "data.jsonl", [{"prompt": "p", "kind": "k"}] * 3)
    assert main(["rewards", "check", f"{file}:good"]) == 0
    assert "ok    batch and singles" in capsys.readouterr().out
    assert main(["rewards", "check", f"{file}:bad", "--data", data]) == 5
    printed = capsys.readouterr()
    assert "fail  batch and singles" in printed.out
    assert "failed 1 of 15 points: batch and singles" in printed.err
    assert main(["rewards", "check", "bleu", "--options.tokenize", "char"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing.py:mine"], ConfigError.exit_code, "no file 'nothing.py'"),
        (["bleu", "--options.tokenise", "char"], ConfigError.exit_code, "tokenise"),
        (["bleu", "--data", "{data}"], DataError.exit_code, "needs the column 'reference'"),
        (["{file}:short"], RewardError.exit_code, "returned 1 scores for 12"),
    ],
)
def test_a_check_that_cannot_begin_ends_with_the_code_of_its_error(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def short(completions, **columns):\n    return [1.0]\n")
    data = write(tmp_path / "data.jsonl", [{"prompt": "p"}])
    given = [argument.format(file=file, data=data) for argument in arguments]
    assert main(["rewards", "check", *given]) == code
    printed = capsys.readouterr().err
    assert "cannot be checked" in printed and message in printed


@pytest.mark.parametrize("arguments", [["list"], ["check", "bleu"], ["show", "learned"]])
def test_torch_is_not_imported_for_rewards_that_do_not_need_it(arguments: list[str]) -> None:
    code = (
        "import sys; from instructrec.experiments.cli import main; "
        f"code = main(['rewards', *{arguments}]); "
        "print(code, [m for m in ('torch', 'transformers', 'trl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


# score --------------------------------------------------------------------------------------------


def test_a_file_is_scored_into_a_table_and_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write(tmp_path / "data.jsonl", ROWS), tmp_path / "out" / "scores.jsonl"
    assert main(["rewards", "score", "exact_match", "--data", data, "--out", str(out)]) == 0
    head, line = capsys.readouterr().out.splitlines()[:2]
    assert head.split()[:5] == ["reward", "mean", "std", "min", "max"]
    assert line.split() == ["exact_match", "0.5", "0.5", "0", "1", "2", "1", "0"]
    first, second, third = scores(out)
    assert (first["row"], first["id"], first["total"], first["response"]) == (0, "a", 1.0, "2")
    assert second["parts"] == {"exact_match": 0.0}
    assert (third["total"], third["status"]) == (None, {"exact_match": "not_applicable"})


def test_failures_are_counted_by_reason(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def number(completions, **columns):\n    return [float(c) for c in completions]"
    )
    data = write(tmp_path / "data.jsonl", [{"completion": c} for c in ("1", "x", "nan", "3")])
    out = tmp_path / "scores.jsonl"
    summary = score_file(f"{file}:number", ScoreConfig(data=data, out=str(out)), quiet=True)
    assert summary.parts["number"].outcomes == {"scored": 2, "raised": 1, "nonfinite": 1}
    assert "1 nonfinite, 1 raised" in str(summary)
    assert scores(out)[1]["errors"] == {
        "number": "ValueError: could not convert string to float: 'x'"
    }


def test_the_rewards_of_a_recipe_are_scored_together(tmp_path: Path) -> None:
    gate = {"use": "gate", "options": {"parts": {"bleu": 1, "exact_match": 1}}}
    recipe = tmp_path / "run.yaml"
    content = {"seed": 1, "rewards": {"gated": gate, "exact_match": 0.5}}
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))
    data = write(tmp_path / "data.jsonl", ROWS)
    summary = score_file(str(recipe), ScoreConfig(data=data), quiet=True)
    assert list(summary.parts) == [
        *("gated", "gated.bleu", "gated.exact_match", "exact_match", "total")
    ]
    assert summary.parts["total"].highest == 1.5
    assert str(summary).splitlines()[-1].startswith("total")
    with pytest.raises(ConfigError, match="options were given"):
        score_file(str(recipe), ScoreConfig(data=data, options={"a": 1}), quiet=True)


def test_chats_csv_and_parquet_are_read_under_their_usual_names(tmp_path: Path) -> None:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    files = [write(tmp_path / "chat.jsonl", [{"messages": chat, "reference": "2"}])]
    files.append(str(tmp_path / "data.csv"))
    with open(files[-1], "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["question", "output", "reference"], ["1+1?", "2", "2"]])
    table = {"prompt": ["1+1?"], "completion": ["2"], "reference": ["2"], "step": [3]}
    files.append(str(tmp_path / "completions.parquet"))
    pyarrow.parquet.write_table(pyarrow.table(table), files[-1])
    for data in files:
        summary = score_file("exact_match", ScoreConfig(data=data), quiet=True)
        assert (summary.rows, summary.parts["exact_match"].stats.mean) == (1, 1.0), data


def test_columns_of_other_names_are_named(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", [{"q": "1+1?", "said": "2", "answer": "2"}])
    config = ScoreConfig(
        data=data,
        prompt_column="q",
        response_column="said",
        options={"reference_column": "answer"},
    )
    assert score_file("exact_match", config, quiet=True).parts["exact_match"].stats.mean == 1.0
    with pytest.raises(DataError, match=r"no responses: .*--response_column"):
        score_file("exact_match", ScoreConfig(data=data), quiet=True)
    with pytest.raises(DataError, match=r"no column 'sad'. Did you mean 'said'"):
        score_file("exact_match", ScoreConfig(data=data, response_column="sad"), quiet=True)
    with pytest.raises(DataError, match="needs the column 'reference'"):
        score_file("exact_match", ScoreConfig(data=data, response_column="said"), quiet=True)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    rows = [{**ROWS[i % 3], "id": str(i)} for i in range(100)]
    data, out = write(tmp_path / "data.jsonl", rows), tmp_path / "scores.jsonl"
    config = ScoreConfig(data=data, out=str(out), batch_size=7)
    whole = str(score_file("exact_match", config, quiet=True))
    complete = out.read_bytes()
    for size in (0, 1, len(complete) // 2, len(complete) - 1, len(complete)):
        out.write_bytes(complete[:size])
        summary = score_file("exact_match", config, quiet=True)
        assert (out.read_bytes(), str(summary), summary.rows) == (complete, whole, 100)


def test_scores_of_another_reward_or_file_are_not_continued(tmp_path: Path) -> None:
    data, out = write(tmp_path / "data.jsonl", ROWS), tmp_path / "scores.jsonl"
    config = ScoreConfig(data=data, out=str(out))
    score_file("exact_match", config, quiet=True)
    with pytest.raises(DataError, match="another reward, file or column"):
        score_file("bleu", config, quiet=True)
    write(tmp_path / "data.jsonl", ROWS[:2])
    with pytest.raises(DataError, match="--overwrite"):
        score_file("exact_match", config, quiet=True)
    assert score_file("exact_match", config, overwrite=True, quiet=True).rows == 2
    assert len(scores(out)) == 2


@pytest.mark.parametrize("inside", [False, True])
def test_scores_of_another_column_or_code_are_not_continued(tmp_path: Path, inside: bool) -> None:
    data, out = write(tmp_path / "data.jsonl", ROWS), tmp_path / "scores.jsonl"
    reward = tmp_path / "mine.py"
    reward.write_text("def one(completions, **columns):\n    return [1.0 for _ in completions]\n")
    recipe = tmp_path / "recipe.yaml"
    inner = {"parts": {"one": f"{reward}:one"}} if inside else {}
    use = "weighted" if inside else f"{reward}:one"
    recipe.write_text(yaml.safe_dump({"rewards": {"mine": {"use": use, "options": inner}}}))
    config = ScoreConfig(data=data, out=str(out))
    score_file(str(recipe), config, quiet=True)
    with pytest.raises(DataError, match=r"another reward, file or column .*columns: "):
        score_file(str(recipe), replace(config, response_column="reference"), quiet=True)
    reward.write_text("def one(completions, **columns):\n    return [0.5 for _ in completions]\n")
    with pytest.raises(DataError, match=r"another reward, file or column .*code: "):
        score_file(str(recipe), config, quiet=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_responses_are_never_replaced_by_their_scores(tmp_path: Path, overwrite: bool) -> None:
    data = write(tmp_path / "data.jsonl", ROWS)
    before = Path(data).read_bytes()
    config = ScoreConfig(data=data, out=str(tmp_path / "." / "data.jsonl"))
    with pytest.raises(ConfigError, match="file of responses itself"):
        score_file("exact_match", config, overwrite=overwrite, quiet=True)
    assert Path(data).read_bytes() == before


@pytest.mark.parametrize("content", ['{"my": "notes"}', "[1]", "no JSON"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_another_file_beside_the_scores_is_never_replaced(
    tmp_path: Path, overwrite: bool, content: str
) -> None:
    data, side = write(tmp_path / "data.jsonl", ROWS), tmp_path / "scores.json"
    side.write_text(content)
    config = ScoreConfig(data=data, out=str(tmp_path / "scores.jsonl"))
    with pytest.raises(ConfigError, match=r"scores\.json, and there is another file.*--out"):
        score_file("exact_match", config, overwrite=overwrite, quiet=True)
    assert side.read_text() == content and not (tmp_path / "scores.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "there is no data file"),
        ("empty.jsonl", "", "holds no rows"),
        ("broken.jsonl", '{"response": "1"}\n{"prompt"', "line 2"),
        ("list.jsonl", "[1]\n", "line 1: expected an object, found list"),
        ("ragged.csv", "prompt,response\na,b\na,b,c\n", "another number of fields"),
        ("no.parquet", "text", "is not a Parquet file"),
        ("silent.jsonl", '{"messages": [{"role": "user", "content": "x"}]}\n', "do not end with"),
        ("none.jsonl", '{"prompt": "a", "response": null, "reference": "a"}\n', "no 'response'"),
    ],
)
def test_a_file_that_cannot_be_read_is_explained(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    reward = tmp_path / "any.py"
    reward.write_text("def any_(completions, **columns):\n    return [0.0] * len(completions)")
    with pytest.raises(DataError, match=message):
        score_file(f"{reward}:any_", ScoreConfig(data=str(tmp_path / name)), quiet=True)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for size in (1_000, 8_000):
        data = write(tmp_path / f"{size}.jsonl", [ROWS[i % 3] for i in range(size)])
        config = ScoreConfig(data=data, out=str(tmp_path / f"{size}-scores.jsonl"))
        score_file("exact_match", config, quiet=True)  # what is loaded once is loaded now
        config = ScoreConfig(data=data, out=str(tmp_path / f"{size}-again.jsonl"))
        tracemalloc.start()
        assert score_file("exact_match", config, quiet=True).rows == size
        assert score_file("exact_match", config, quiet=True).rows == size  # a finished one, too
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


MINE = """
import sys

def leaves(completions, **columns):
    sys.exit(0)

def chat(completions, **columns):
    return [float("2" in completion[0]["content"]) for completion in completions]

def silent(completions, **columns):
    return [None for _ in completions]
"""


def test_a_reward_that_ends_the_program_ends_no_command_in_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    data = write(tmp_path / "data.jsonl", ROWS)
    assert main(["rewards", "check", f"{tmp_path}/mine.py:leaves"]) == RewardError.exit_code
    assert "raised: SystemExit: 0" in capsys.readouterr().out
    assert main(["rewards", "score", f"{tmp_path}/mine.py:leaves", "--data", data]) == 5


def test_where_no_row_is_scored_the_reason_is_shown_and_the_command_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    data = write(tmp_path / "data.jsonl", ROWS)
    chat = ["rewards", "score", f"{tmp_path}/mine.py:chat", "--data", data]
    assert main(chat) == RewardError.exit_code
    printed = capsys.readouterr()
    assert "3 raised" in printed.out
    assert "chat failed, first: TypeError: string indices" in printed.out
    assert "none of the 3 responses got a score" in printed.err
    assert main([*chat, "--format", "chat"]) == 0
    assert "failed, first" not in capsys.readouterr().out
    assert main(["rewards", "check", chat[2], "--format", "chat"]) == 0
    assert main(["rewards", "score", f"{tmp_path}/mine.py:silent", "--data", data]) == 5


def test_a_check_that_hangs_ends_with_the_code_of_reward_errors(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import time\ndef hangs(completions, **columns):\n    time.sleep(60)\n")
    check = ["rewards", "check", f"{file}:hangs", "--timeout"]
    assert main([*check, "0.2"]) == RewardError.exit_code
    assert main([*check, "0"]) == ConfigError.exit_code
