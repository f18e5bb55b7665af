"""What an evaluation says beside the rewards: levels, refusals, bounds."""

from __future__ import annotations

import re

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.experiments.evaluation import evaluate
from instructrec.experiments.evaluation_report import report
from instructrec.experiments.groups import by_level
from instructrec.policies.base import Responses
from instructrec.policies.config import Sampling
from instructrec.policies.scripted import ConstantPolicy, OraclePolicy
from instructrec.rewards import make_rewards

GREEDY = Sampling(max_new_tokens=8, temperature=0.0)


def test_levels_of_difficulty_have_rows_of_their_own() -> None:
    task = make_task("skills", families=["counting"], levels=[2, 1], size=20, split="test")
    found = evaluate(OraclePolicy(), task, make_rewards("exact_match"), sampling=GREEDY)
    assert {row["level"] for row in found.rows} == {1, 2}
    levels = by_level(found)
    assert list(levels) == ["1", "2"] and sum(level.n for level in levels.values()) == len(task)
    assert re.search(r"^  level 2 +1\.000 ", report("oracle", found), flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "share"), [("I'm sorry, but I cannot help with that.", 1.0), ("seven", 0.0)]
)
def test_refusals_are_counted(text: str, share: float) -> None:
    task = make_task("parity", size=8, split="test")
    found = evaluate(ConstantPolicy(text), task, make_rewards("exact_match"), sampling=GREEDY)
    assert found.metrics()["eval/refusal_frac"] == share


def test_a_reward_without_any_score_has_no_row() -> None:
    class Silent:
        name = "silent"

        def respond(self, prompts: list[str], columns: object, sampling: object) -> Responses:
            return Responses(["x"] * len(prompts))

    task = make_task("parity", size=8, split="test")
    rewards = make_rewards({"exact_match": 1.0, "never": f"{__file__}:never"})
    text = report("x", evaluate(Silent(), task, rewards, sampling=GREEDY))
    assert "exact_match" in text and "nan" not in text
    assert re.search(r"without any score +never", text)


def never(completions: list[str], **columns: object) -> list[None]:
    """Applies to nothing."""
    return [None] * len(completions)
