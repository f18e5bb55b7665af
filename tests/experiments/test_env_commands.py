"""``instructrec envs``: what there is, what answers earn, and being the policy."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import pytest

from instructrec.experiments.cli import main
from instructrec.experiments.env_play import play

IDS = sorted(name for name in gym.registry if name.startswith("instructrec/"))
HERE = [name for name in IDS if "ReasoningGym" not in name or find_spec("reasoning_gym")]
COMMAND = [sys.executable, "-m", "instructrec.experiments.cli", "envs"]


def rows(text: str) -> dict[str, list[str]]:
    """The lines of tables, by their first cell."""
    cells = [re.split(r" {2,}", line) for line in text.splitlines() if line]
    return {row[0]: row[1:] for row in cells}


def fragile(completions, **columns):
    """Fails on the word bad, and has nothing to say about the word none."""
    if "bad" in completions:
        raise ValueError("bad text")
    return [None if text == "none" else 1.0 for text in completions]


class Choice(gym.Env):
    """An environment whose actions are numbers."""

    observation_space = gym.spaces.Discrete(1)
    action_space = gym.spaces.Discrete(3, start=1)
    spec = None

    def reset(self, *, seed=None, options=None):
        return 0, {"round": 7}

    def step(self, action):
        return 0, float(action), False, True, {}


def test_the_list_names_every_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "list"]) == 0
    listed = rows(capsys.readouterr().out)
    assert set(listed) == {"environment", *IDS}
    assert listed["instructrec/Parity-v0"][0] == "parity"
    assert listed["instructrec/Parity-v0"][1].endswith(("-> even", "-> odd"))
    assert listed["instructrec/Refine-v0"][0] == "any"
    told = {name: row[1] for name, row in listed.items() if name != "instructrec/ClosedAnswers-v0"}
    assert len(set(told.values())) == len(told)  # that one begins with an item of another
    assert not any("`" in row[1] for row in listed.values())
    assert all(len(row) == 2 and row[1] for row in listed.values())
    assert main(["envs", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["id"] for entry in found] == IDS
    assert {"id": "instructrec/Parity-v0", "arguments": {"task": "parity"}} in found


@pytest.mark.parametrize("name", HERE)
def test_an_instruction_and_what_answers_earn_is_shown(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["envs", "show", name, "--seed", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    earned = {row["answer"]: row for row in found["answers"]}
    assert found["id"] == name and "random" in earned
    assert all(row["turns"] >= 1 for row in earned.values())
    if "oracle" in earned:
        assert earned["oracle"]["return"] >= max(row["return"] for row in earned.values())
    assert main(["envs", "show", name, "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert "task" in rows(printed) and "reward" in rows(printed)


def test_show_takes_the_arguments_of_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    reward = '{"exact_match": 1.0, "bleu": 0.5}'
    arguments = ["envs", "show", "Refine", "--task", "parity", "--split", "test", "--index", "5"]
    arguments += ["--options.max_turns", "2", "--options.reward", reward]
    assert main(arguments) == 0
    found = rows(capsys.readouterr().out)
    assert found["task"][0].startswith("parity, test: ")
    assert found["answer"] == ["return", "turns", "status", "exact_match", "bleu", "text"]
    assert found["empty"][1] == "2"


def test_the_random_answer_is_no_peek_at_the_reference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hits = 0
    for seed in range(12):
        main(["envs", "show", "Arithmetic", "--seed", str(seed), "--json"])
        answers = json.loads(capsys.readouterr().out)["answers"]
        hits += answers[2]["answer"] == "random" and answers[2]["return"] == 1.0
    assert hits <= 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "Parrity"], 2, "Did you mean 'Parity'"),
        (["show", "Parity", "--options.rewards", "bleu"], 2, "Did you mean 'reward'"),
        (["show", "Tool", "--options.maxturns", "2"], 2, "Did you mean 'max_turns'"),
        (["show", "Parity", "--options.bogus", "1"], 2, "Known: max_chars, "),
        (["show", "Instruction", "--task", "rows.txt"], 2, "ending in .jsonl, .json, .csv, .par"),
        (["show", "Instruction", "--task", "hf:"], 2, "names no data set: expected hf: and an id"),
        (["show", "Parity", "--index", "100000"], 2, "integer from 0"),
        (["show", "Parity", "--split", "tset"], 2, "Did you mean 'test'"),
        (["show", "Instruction", "--task", "missing.jsonl"], 3, "does not exist"),
        (["play", "Parity", "--episodes", "0"], 2, "expected 1 or more"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["envs", *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_reward_that_fails_is_told_and_the_other_answers_are_scored(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "fragile_reward.py"
    file.write_text(
        "def silent(completions, **columns):\n"
        "    if '' in completions:\n"
        "        raise ValueError('nothing was said')\n"
        "    return [1.0 for _ in completions]\n"
    )
    assert main(["envs", "show", "Parity", "--options.reward", f"{file}:silent"]) == 0
    printed = capsys.readouterr().out
    found = rows(printed)
    assert found["empty"][:3] == ["-", "0", "failed"]
    assert "empty: " in printed and "nothing was said" in printed
    assert found["oracle"][0] == "1.000"


def test_a_person_sees_every_part_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    env = gym.make(
        "instructrec/Parity-v0", reward={"exact_match": 1.0, "fragile": {"use": fragile}}
    ).unwrapped
    env.reset(seed=3)
    right = env.instruction.columns["reference"]
    score = play(env, seed=3, episodes=None, source=io.StringIO(f"{right}\nnone\nbad\n"))
    printed = capsys.readouterr().out
    assert score.returns == [2.0, 0.0] and score.failed == 1 and score.answers == 3
    assert f"> {right}\nreward           2.000\n1 × exact_match  1.000\n" in printed
    assert "1 × fragile      does not apply" in printed
    assert "the reward failed" in printed and "bad text" in printed
    found = rows(printed)
    assert found["mean return of an episode"] == ["1.000"]
    assert found["failed rewards"] == ["1"] and found["episodes"] == ["2"]
    assert len(re.findall(r"^reference +", printed, re.MULTILINE)) == 2


def test_answers_of_several_lines_and_odd_characters_are_taken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[str] = []

    def spy(completions, **columns):
        seen.extend(completions)
        return [0.0 for _ in completions]

    env = gym.make("instructrec/Parity-v0", reward=spy).unwrapped
    play(env, seed=0, episodes=3, source=io.StringIO("a\\\nb\r\n\n\x1b[31mred\n"))
    assert seen == ["a\nb", "", "\x1b[31mred"]
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\\x1b[31mred" in printed


def test_several_turns_are_played_to_their_end(capsys: pytest.CaptureFixture[str]) -> None:
    env = gym.make("instructrec/Refine-v0", task="parity").unwrapped
    score = play(env, seed=0, episodes=1, source=io.StringIO("x\ny\nz\nnever read\n"))
    assert score.answers == 3 and score.returns == [0.0]
    printed = capsys.readouterr().out
    assert printed.count("Try again.") == 2 and printed.count("reference") == 1
    assert rows(printed)["turn"] == ["3"]


def test_numbers_are_asked_for_again_where_actions_are_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    score = play(Choice(), seed=0, episodes=1, source=io.StringIO("two\n9\n3\n"))
    assert score.returns == [3.0]
    printed = capsys.readouterr().out
    assert printed.count("expected a number from 1 to 3") == 2
    assert "round 7" in printed and "by a limit" in printed


def test_every_candidate_is_shown_with_what_it_earns(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["envs", "show", "Candidates", "--task", "parity", "--options.num_candidates=2"]) == 0
    )
    printed = capsys.readouterr().out
    found = rows(printed)
    assert "actions" in found and "0: " in printed and "1: " in printed
    assert sorted(found[f"number {i}"][0] for i in (0, 1)) == ["0.000", "1.000"]
    assert {found[f"number {i}"][-1] for i in (0, 1)} == {"even", "odd"}


def test_a_candidate_is_chosen_by_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    env = gym.make("instructrec/Candidates-v0").unwrapped
    env.reset(seed=3)
    right = env.texts[1:].index(env.instruction.columns["reference"])
    score = play(env, seed=3, episodes=1, source=io.StringIO(f"4\n{right}\n"))
    assert score.returns == [1.0]
    printed = capsys.readouterr().out
    assert "expected a number from 0 to 3" in printed
    assert rows(printed)["response"] == [env.instruction.columns["reference"]]


def test_answers_come_through_a_pipe() -> None:
    done = subprocess.run(
        [*COMMAND, "play", "Parity", "--seed", "3"],
        input=b"odd\neven\n\xff\xfe\n",
        capture_output=True,
    )
    printed = done.stdout.decode()
    assert done.returncode == 0 and done.stderr == b""
    assert "[episode 4: " in printed and rows(printed)["episodes"] == ["3"]


def at_a_terminal(keys: list[bytes], *arguments: str) -> tuple[int, str]:
    """Types keys one after the other, each once the program waits for them."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ["TERM"] = "dumb"
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job ignores it
        os.execv(sys.executable, [*COMMAND, *arguments])
    printed, asked, deadline = b"", 0, time.monotonic() + 60
    try:
        while True:
            if not select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0]:
                os.kill(process, signal.SIGKILL)
                break
            try:
                printed += os.read(terminal, 4096)
            except OSError:  # the program has ended
                break
            if printed.count(b"\n> ") > asked and keys:
                asked += 1
                time.sleep(0.2)
                os.write(terminal, keys.pop(0))
    finally:
        _, status = os.waitpid(process, 0)
        os.close(terminal)
    return os.waitstatus_to_exitcode(status), printed.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("end", [b"\x04", b"\x03"], ids=["end of input", "interrupt"])
def test_a_terminal_asks_and_the_end_brings_a_summary(end: bytes) -> None:
    code, printed = at_a_terminal([b"odd\n", end], "play", "Parity", "--seed", "3")
    assert code == 0 and "Traceback" not in printed
    assert "> odd\nreward" in printed
    assert rows(printed)["episodes"] == ["1"]


def test_none_of_it_imports_torch() -> None:
    code = (
        "import io, sys\n"
        "from instructrec.experiments.cli import main\n"
        "sys.stdin = io.StringIO('x')\n"
        "for command in (['list'], ['show', 'Parity'], ['play', 'Refine']):\n"
        "    assert main(['envs', *command]) == 0\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "False\n"
