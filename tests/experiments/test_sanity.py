"""The sanity check: it overfits what can be learned, and names the cause where it cannot."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.errors import ConfigError, InstructRecError, RewardError
from instructrec.experiments.cli import main
from instructrec.experiments.config import TaskConfig, TrainConfig
from instructrec.experiments.sanity import (
    LastInstructions,
    Look,
    easier,
    likely_cause,
    reference_scores,
    run_sanity,
)
from instructrec.policies.config import PolicyConfig
from instructrec.rewards.combine import make_rewards
from instructrec.rl.config import PPOConfig

PPO = PPOConfig(
    num_updates=7,
    learning_rate=1e-2,
    response_length=2,
    stop_strings=("e", "i", "a", "t"),
    kl_coef=0.0,
)
CONFIG = TrainConfig(
    task=TaskConfig(name="parity", options={"size": 40}),
    policy=PolicyConfig(model="tiny", device="cpu", dtype="float32"),
    ppo=PPO,
)


def reward_file(folder: Path, body: str) -> dict[str, str]:
    (folder / "mine.py").write_text(f"def score(completions, **columns):\n    return {body}\n")
    return {"mine": f"{folder / 'mine.py'}:score"}


def test_a_view_holds_the_last_instructions() -> None:
    task = make_task("parity", split="train", size=40)
    few = LastInstructions(task, 8)
    assert len(few) == 8 and [few[i].id for i in (0, 7, -1)] == [task[i].id for i in (32, 39, 39)]
    assert few.columns == task.columns and few.fingerprint != task.fingerprint
    assert len(LastInstructions(task, 400)) == len(task)
    with pytest.raises(IndexError):
        few[8]


def test_the_reference_shows_what_can_be_reached() -> None:
    few = LastInstructions(make_task("parity", split="train", size=40), 3)
    scores = reference_scores(few, make_rewards({"exact_match": 0.5}))
    assert scores == {few[i].id: 0.5 for i in range(3)}


def test_settings_that_hold_a_policy_back_are_taken_away_but_for_the_entropy_bonus() -> None:
    strict = PPOConfig(
        kl_coef=0.1, kl_target=1.0, entropy_coef=0.1, entropy_target=1.0, critic="separate",
        critic_warmup_updates=3, micro_batch_size=32, target_kl=0.1, num_updates=4,
    )  # fmt: skip
    free = easier(strict, 8, 20, "ppo")
    assert (free.num_updates, free.episodes_per_update, free.num_generations) == (20, 64, 8)
    assert free.kl_coef == 0 and free.target_kl is None and free.entropy_target == 1.0
    assert free.learning_rate * free.entropy_coef == strict.learning_rate * strict.entropy_coef
    assert free.learning_rate == 2 * strict.learning_rate and free.advantage == "rloo"
    assert easier(PPOConfig(kl_coef=0.0, num_generations=2), 8, 20, "raft").advantage == "gae"


@pytest.mark.parametrize("algorithm", ["ppo", "raft"])
def test_an_easy_reward_is_overfitted(tmp_path: Path, algorithm: str) -> None:
    easy = reward_file(
        tmp_path, "[float(text[:1] in set('abcdefghijklm')) for text in completions]"
    )
    ppo = dataclasses.replace(PPO, num_generations=2)
    config = dataclasses.replace(CONFIG, rewards=easy, ppo=ppo, algorithm=algorithm)
    said: list[str] = []
    looks = run_sanity(config, say=said.append)
    assert looks[0].reward < 0.5 and looks[-1].reward >= 0.95 * looks[-1].best > 0.9
    assert len(looks) > 1
    assert [line.startswith("update") for line in said] == [False, *[True] * len(looks), False]
    assert said[-1].startswith("sane: ")


def test_an_impossible_reward_is_told_from_a_slow_policy(tmp_path: Path) -> None:
    never = reward_file(tmp_path, "[0.0 for text in completions]")
    config = dataclasses.replace(CONFIG, rewards=never)
    with pytest.raises(RewardError, match=r"no two responses .*`instructrec sft`"):
        run_sanity(config, say=lambda text: None, max_updates=2)


@pytest.mark.parametrize(
    "body", ["[0.5 for text in completions]", "[float(len(x)) for x in columns['prompts']]"]
)
def test_a_reward_that_does_not_look_at_the_response_is_never_sane(
    tmp_path: Path, body: str
) -> None:
    config = dataclasses.replace(CONFIG, rewards=reward_file(tmp_path, body))
    with pytest.raises(RewardError, match=r"no two responses .*already at full marks"):
        run_sanity(config, say=lambda text: None, max_updates=3)


def test_the_first_update_says_what_the_check_takes(tmp_path: Path) -> None:
    never = reward_file(tmp_path, "[0.0 for text in completions]")
    said: list[str] = []
    with pytest.raises(RewardError):
        run_sanity(dataclasses.replace(CONFIG, rewards=never), say=said.append, max_updates=2)
    assert ["2 updates about" in line for line in said] == [False, True, False]


def test_the_command_line_writes_nothing_and_returns_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tiny_smoke", "--sanity"]) == 5
    captured = capsys.readouterr()
    assert "no two responses" in captured.err and captured.out.count("update  ") == 5
    assert main(["train", "tiny_smoke", "--sanity", "--overwrite"]) == 2
    assert main(["sft", "short_answers_sft", "--sanity"]) == 2
    assert list(tmp_path.iterdir()) == []


def course(rewards: list[float], **changes: list[float]) -> list[Look]:
    looks = []
    for i, reward in enumerate(rewards):
        look = Look(reward, best=1.0, flat=0.2, entropy=1.0, step=0.01, cut=0.0)
        looks.append(dataclasses.replace(look, **{k: v[i] for k, v in changes.items()}))
    return looks


RISING, FALLING, LEVEL = [0.1, 0.1, 0.3, 0.3, 0.3], [0.6, 0.6, 0.2, 0.2, 0.2], [0.3] * 5


@pytest.mark.parametrize(
    ("looks", "error", "message"),
    [
        (course([0.0] * 5, flat=[1.0] * 5), RewardError, "nothing to learn from"),
        (course(RISING, cut=[0.9] * 5), ConfigError, "90% of the responses were cut at"),
        (
            course(FALLING, entropy=[0.1, 0.1, 0.5, 4, 7], cut=[0.0] * 4 + [0.9]),
            ConfigError,
            "the policy fell apart. Lower ppo.entropy_coef",
        ),
        (course(FALLING, step=[0.5] * 5), ConfigError, "lower ppo.learning_rate"),
        (course(FALLING), ConfigError, "the sign of the rewards' weights"),
        (course(RISING, entropy=[1, 1, 0.5, 0.1, 0.05]), ConfigError, "the entropy collapsed"),
        (course(RISING), ConfigError, "it rises, but slowly.*low ppo.learning_rate"),
        (course(LEVEL), ConfigError, "it did not move"),
    ],
)
def test_the_numbers_name_the_cause(
    looks: list[Look], error: type[InstructRecError], message: str
) -> None:
    found = likely_cause(looks, PPO)
    assert type(found) is error
    with pytest.raises(error, match=message):
        raise found


def test_what_counts_as_reached() -> None:
    (look,) = course([0.95])
    assert look.reached and not dataclasses.replace(look, reward=0.94).reached
    solved = dataclasses.replace(look, reward=1.0, flat=1.0)
    assert solved.reached
    assert not dataclasses.replace(solved, reward=0.0, best=0.0).reached
    assert dataclasses.replace(look, reward=-1.04, best=-1.0).reached
