"""The curriculum: which levels are played, when they change, and that a run resumes with it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from instructrec.envs.tasks.dataset import DatasetTask
from instructrec.errors import CheckpointError, ConfigError, DataError
from instructrec.rl.checkpoint import read_checkpoint
from instructrec.rl.config import PPOConfig
from instructrec.rl.curriculum import Curriculum, make_curriculum
from instructrec.rl.rollout import instruction_order

NAN = float("nan")
CONFIG = PPOConfig(
    curriculum="level", curriculum_window=10, curriculum_raise=0.8, curriculum_lower=0.2
)
PLACES = [(("sums", "words")[i % 2], 1 + i // 2 % 3) for i in range(120)]


def curriculum(seed=0, places=PLACES, **changes):
    return Curriculum(places, seed, dataclasses.replace(CONFIG, **changes))


def played(it):
    return {family: ladder.level for family, ladder in it.ladders.items()}


def answer(it, family, rewards):
    """Tells what answers to an instruction of the family's current level earned."""
    for reward in rewards:
        it.observe([it.places.index((family, played(it)[family]))], [reward])


def test_it_begins_with_the_lowest_level_in_the_order_of_every_run():
    it = curriculum(seed=3)
    chosen = it.choose(20)
    assert {PLACES[index][1] for index in chosen} == {1}
    easy = [index for index in instruction_order(120, 3, 0, 120) if PLACES[index][1] == 1]
    assert chosen == easy[:20]
    assert it.metrics() == {"rollout/level": 1.0}


def test_a_family_rises_when_enough_of_its_answers_pass():
    it = curriculum()
    answer(it, "sums", [1.0] * 9)
    assert played(it) == {"sums": 1, "words": 1}
    answer(it, "sums", [0.0])
    assert played(it) == {"sums": 2, "words": 1}
    chosen = it.choose(60)
    assert {PLACES[index] for index in chosen} == {("sums", 2), ("words", 1)}


def test_it_falls_when_few_pass_and_stays_in_between():
    it = curriculum()
    answer(it, "sums", [1.0] * 10 + [0.0, 1.0] * 20)
    assert played(it)["sums"] == 2
    answer(it, "sums", [0.0] * 8)
    assert played(it)["sums"] == 1


def test_every_level_is_judged_by_its_own_answers():
    it = curriculum()
    answer(it, "sums", [1.0] * 19)
    assert played(it)["sums"] == 2
    easy = PLACES.index(("sums", 1))
    it.observe([easy] * 10, [0.0] * 10)  # chosen before the level rose
    assert played(it)["sums"] == 2
    answer(it, "sums", [1.0])
    assert played(it)["sums"] == 3


def test_there_is_nothing_above_the_last_level_and_below_the_first():
    it = curriculum()
    answer(it, "sums", [1.0] * 100)
    answer(it, "words", [0.0] * 100)
    assert played(it) == {"sums": 3, "words": 1}
    answer(it, "sums", [0.0] * 9)
    assert played(it)["sums"] == 2  # the latest ten decide, not all hundred


def test_a_pass_is_a_reward_from_the_bound_on_and_no_reward_says_nothing():
    it = curriculum(curriculum_pass=0.5)
    answer(it, "sums", [NAN] * 50 + [0.5] * 9)
    assert played(it)["sums"] == 1
    answer(it, "sums", [0.5])
    assert played(it)["sums"] == 2
    answer(it, "sums", [0.49] * 10)
    assert played(it)["sums"] == 1


def test_generations_of_an_instruction_stay_together():
    chosen = curriculum().choose(12, num_generations=3)
    assert len(chosen) == 12
    assert all(len(set(chosen[i : i + 3])) == 1 for i in range(0, 12, 3))


def test_a_restored_curriculum_goes_on_alike():
    whole = curriculum(seed=5)
    answer(whole, "sums", [1.0] * 17)
    whole.choose(64)
    restored = curriculum(seed=5)
    restored.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for it in (whole, restored):
        answer(it, "sums", [1.0] * 3)
    assert restored.choose(64) == whole.choose(64)
    assert played(restored) == played(whole) == {"sums": 3, "words": 1}


@pytest.mark.parametrize("left", [("words", 1), ("sums", 1)])
def test_a_level_that_the_data_no_longer_has_is_told(left):
    whole = curriculum()
    answer(whole, "sums", [1.0] * 10)
    with pytest.raises(CheckpointError, match="level 2 of family 'sums'"):
        curriculum(places=[left] * 4).load_state_dict(whole.state_dict())


def test_a_task_that_knows_its_levels_is_not_generated_for_them():
    class Known:
        def __len__(self):
            return 6

        def labels(self, index):
            return {"level": index % 2, "family": "all"}

    it = make_curriculum(Known(), 0, CONFIG)
    assert it.places == [("all", 0), ("all", 1)] * 3


def test_levels_of_a_file_may_be_text_but_have_to_be_whole_numbers(tmp_path):
    def levels(*values):
        path = tmp_path / "task.jsonl"
        rows = [{"prompt": str(i), "reference": "", "level": v} for i, v in enumerate(values)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return make_curriculum(DatasetTask(str(path), split="all"), 0, CONFIG).ladders

    assert next(iter(levels("10", "9").values())).levels == [9, 10]
    for value in ("hard", None, 1.5):
        with pytest.raises(DataError, match=r"ppo.curriculum = 'level'.*whole number"):
            levels(1, value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curriculum_window": 5}, "no effect without ppo.curriculum"),
        ({"curriculum": "level", "prompt_filter": "id"}, "both choose the instructions"),
        ({"curriculum": "level", "curriculum_lower": 0.8}, "expected a gap"),
        ({"curriculum": "level", "curriculum_raise": 1.1}, "curriculum_raise"),
        ({"curriculum": "level", "curriculum_lower": -0.1}, "curriculum_lower"),
        ({"curriculum": "level", "curriculum_window": 0}, "curriculum_window"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PPOConfig(**settings)


def test_a_column_that_the_task_lacks_is_refused():
    with pytest.raises(DataError, match=r"ppo.curriculum = 'level': the task has no such column"):
        CONFIG.check_task(1000, ["reference"])


@pytest.fixture(scope="module")
def levelled(toy, tmp_path_factory):
    """The toy task in three levels, and settings with which the tiny model climbs them."""
    path = tmp_path_factory.mktemp("levels") / "task.jsonl"
    rows = [{"prompt": f"write {i}", "reference": "a", "level": i % 3} for i in range(96)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = dataclasses.replace(
        toy.fast,
        num_updates=6,
        curriculum="level",
        curriculum_pass=0.25,
        curriculum_window=24,
        curriculum_raise=0.5,
    )
    return type(toy)(str(path)), config


def test_training_climbs_and_resumes_bit_for_bit(levelled, tmp_path):
    toy, config = levelled
    policy, _, log = toy.train(config)
    levels = [metrics["rollout/level"] for metrics, _ in log]
    assert levels[0] == 0.0 and levels == sorted(levels) and levels[-1] > 0

    stops = iter([False, True])
    _, result, first = toy.train(config, checkpoint_dir=tmp_path, should_stop=lambda: next(stops))
    assert result.stopped == "interrupted"
    state = read_checkpoint(tmp_path / "update-000002").state["prompt_filter"]
    assert state["position"] > 0 and len(state["families"]) == 1
    resumed, _, rest = toy.train(config, resume_from=tmp_path / "update-000002")
    assert resumed.weights_hash() == policy.weights_hash()
    assert toy.without_times(first + rest) == toy.without_times(log)
    assert [rows for _, rows in first + rest] == [rows for _, rows in log]
