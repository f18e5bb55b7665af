"""``instructrec explain``: an episode of a run, of a model, and of a prompt of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructrec.errors import ConfigError, DataError
from instructrec.experiments.cli import main
from instructrec.experiments.explain import ExplainConfig, explain
from instructrec.experiments.explain_text import COLUMNS, page_of, to_text
from instructrec.rewards.parts import RewardSpec


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of the tiny model with a critic and a reference."""
    folder = tmp_path_factory.mktemp("explained")
    options = ["--output.dir", str(folder), "--tracking.mode", "disabled", "--ppo.kl_coef", "0.1"]
    assert main(["train", "tiny_smoke", *options]) == 0
    return str(folder / "tiny-smoke-s0")


def test_an_episode_of_a_run_has_every_number(run: str) -> None:
    found = explain(run, ExplainConfig(index=3), say=silent)
    assert found["reference"] == "tiny" and found["statuses"] == {"exact_match": "scored"}
    assert all(token[name] is not None for token in found["tokens"] for name in COLUMNS)
    for token in found["tokens"]:
        assert token["kl"] == pytest.approx(token["logprob"] - token["reference"])
        assert len(token["top"]) == 3
    again = explain(run, ExplainConfig(id=found["id"]), say=silent)
    assert again == found


def test_words_are_credited_with_what_they_add(run: str) -> None:
    right = explain(run, ExplainConfig(index=0), say=silent)["expected"]
    found = explain(run, ExplainConfig(index=0, response=f"{right}"), say=silent)
    assert found["total"] == 1.0 and found["response"] == right
    assert [row["adds"] for row in found["words"]] == [1.0] * len(right.split())
    found = explain(run, ExplainConfig(index=0, response=f"{right} really"), say=silent)
    assert found["total"] == 0.0
    assert found["words"][-1] == {"word": "really", "adds": -1.0, "parts": {"exact_match": -1.0}}


SHOUTING = '''
def letters(completions, **columns):
    """Tenths of a letter."""
    return [len(text) / 10 for text in completions]


def shouts(completions, **columns):
    """Words in capitals."""
    return [float(sum(word.isupper() for word in text.split())) for text in completions]
'''


def test_every_reward_says_what_a_word_adds_those_of_weight_0_too(run: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SHOUTING)
    rewards = {
        "letters": RewardSpec(use=f"{tmp_path / 'mine.py'}:letters", weight=2.0),
        "shouts": RewardSpec(use=f"{tmp_path / 'mine.py'}:shouts", weight=0.0),
    }
    html = tmp_path / "e.html"
    config = ExplainConfig(index=0, response="a BIG cat", rewards=rewards, html=str(html))
    found = explain(run, config, say=silent)
    first, second, third = found["words"]
    assert second["parts"] == {"letters": pytest.approx(0.3), "shouts": 1.0}
    assert second["adds"] == pytest.approx(0.6) and first["parts"]["shouts"] == 0.0
    assert third["parts"]["letters"] == pytest.approx(0.4)  # with the space that goes with it
    lines = to_text(found).splitlines()
    assert any(line.split() == ["word", "adds", "to", "the", "total", "letters", "shouts"]
               for line in lines)  # fmt: skip
    assert any(line.split() == ["BIG", "0.600", "0.300", "1.000"] for line in lines)
    assert "reward shouts of the response" in html.read_text()
    config = ExplainConfig(index=0, response="\u5c71\u9ad8 BIG", rewards=rewards)
    words = [row["word"] for row in explain(run, config, say=silent)["words"]]
    assert words == ["\u5c71", "\u9ad8", "BIG"]  # no white space parts the first two


def test_a_prompt_of_ones_own_is_judged_by_what_needs_no_other_column(
    run: str, tmp_path: Path
) -> None:
    own = {"prompt": "Is 7 odd?", "response": "yes"}
    found = explain(run, ExplainConfig(**own), say=silent)
    assert found["total"] is None and "--expected" in found["notes"][-1]
    assert "'exact_match'" in found["notes"][-1]
    found = explain(run, ExplainConfig(**own, expected="yes"), say=silent)
    assert (found["total"], found["expected"]) == (1.0, "yes")
    assert [row["adds"] for row in found["words"]] == [1.0]
    (tmp_path / "mine.py").write_text(SHOUTING)
    letters = {"letters": f"{tmp_path / 'mine.py'}:letters"}
    found = explain("tiny@1", ExplainConfig(**own, rewards=letters), say=silent)
    assert found["parts"] == {"letters": pytest.approx(0.3)} and found["notes"] == []
    with pytest.raises(DataError, match="needs the column 'reference'"):
        explain("tiny@1", ExplainConfig(**own, rewards={"exact_match": 1.0}), say=silent)


def test_a_model_explains_a_prompt_of_ones_own(tmp_path: Path) -> None:
    config = ExplainConfig(prompt="Say hello.", response="hello", json=str(tmp_path / "e.json"))
    found = explain("tiny@1", config, say=silent)
    assert found["total"] is None and found["words"] == [] and found["reference"] is None
    assert json.loads((tmp_path / "e.json").read_text())["response"] == "hello"
    assert all(token["advantage"] is None for token in found["tokens"])
    held = explain("tiny@1", ExplainConfig(prompt="Hi", reference="tiny@2"), say=silent)
    assert held["reference"] == "tiny@2" and held["tokens"][0]["kl"] != 0


def test_files_go_into_new_folders_and_what_cannot_be_written_is_said_first(tmp_path: Path) -> None:
    page, numbers = tmp_path / "new" / "a.html", tmp_path / "other" / "a.json"
    settings: dict[str, Any] = {"prompt": "Say: red.", "attribution": False}
    explain("tiny", ExplainConfig(html=str(page), json=str(numbers), **settings), say=silent)
    assert page.is_file() and numbers.is_file()
    said: list[str] = []
    for odd, message in ((tmp_path, "is a folder"), (page / "b.html", "a.html is no folder")):
        with pytest.raises(ConfigError, match=message):
            explain("tiny", ExplainConfig(html=str(odd), **settings), say=said.append)
    assert not said


def test_what_a_policy_writes_steers_neither_terminal_nor_page(run: str) -> None:
    hostile = "\x1b[2J<script>alert(1)</script>"
    found = explain(run, ExplainConfig(index=0, response=hostile), say=silent)
    assert "\x1b" not in to_text(found)
    page = page_of(found)
    assert "<script>alert" not in page and "\x1b" not in page and "&lt;" in page


@pytest.mark.parametrize(
    ("policy", "options", "error", "words"),
    [
        ("oracle", {}, ConfigError, "no weights"),
        ("tiny@1", {"id": "nobody"}, DataError, "no instruction 'nobody'"),
        ("tiny@1", {"task": "parity", "index": 10**7}, DataError, "index = 10000000"),
    ],
)
def test_what_cannot_be_explained_is_said(
    policy: str, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        explain(policy, ExplainConfig(**options), say=silent)


def test_two_ways_to_name_an_instruction_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="exclude"):
        ExplainConfig(prompt="Hi", id="q1")
    with pytest.raises(ConfigError, match="give --prompt, too"):
        ExplainConfig(id="q1", expected="yes")
