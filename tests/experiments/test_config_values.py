"""Configurations: what is refused, what is derived, what survives a round trip."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from instructrec.errors import CheckpointError, ConfigError
from instructrec.experiments.chat_terminal import ChatConfig
from instructrec.experiments.command_line import (
    RECIPES,
    as_dataclass,
    command_of,
    make_parser,
    parse,
)
from instructrec.experiments.config import (
    EvalConfig,
    EvaluateConfig,
    OutputConfig,
    TaskConfig,
    TrainConfig,
    flatten,
    keep_chosen,
    refuse_changed,
)
from instructrec.experiments.editor_commands import CONFIGS
from instructrec.experiments.quickstart_config import QuickstartConfig
from instructrec.rewards import RewardSpec
from instructrec.rl.config import PPOConfig, SFTConfig


def read_back(config: TrainConfig, file: Path) -> TrainConfig:
    file.write_text(yaml.safe_dump(config.to_dict()), encoding="utf-8")
    parser = make_parser("test", "")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(TrainConfig)
    read: TrainConfig = as_dataclass(TrainConfig, parse(parser, ["--config", str(file)]))
    return read


def test_names_are_derived_from_algorithm_task_and_seed() -> None:
    config = TrainConfig(seed=3)
    assert config.resolved_variant == "ppo-closed-answers"
    assert config.folder == Path("runs/ppo-closed-answers-s3")


@pytest.mark.parametrize(
    ("task", "variant"),
    [("data/my capitals.jsonl", "ppo-my-capitals"), ("my_tasks.py:hard", "ppo-my-tasks")],
)
def test_a_task_given_as_a_path_names_a_folder_without_slashes(task: str, variant: str) -> None:
    assert TrainConfig(task=TaskConfig(name=task)).resolved_variant == variant


def test_several_tries_are_another_variant_and_their_options_need_them() -> None:
    refine = TaskConfig(env="refine", max_turns=4)
    assert TrainConfig(task=refine).resolved_variant == "ppo-closed-answers-refine"
    with pytest.raises(ConfigError, match=r"task\.max_turns given.*set task\.env to 'refine'"):
        TaskConfig(max_turns=4)
    with pytest.raises(ConfigError, match=r"task\.max_turns = 0"):
        TaskConfig(env="refine", max_turns=0)
    with pytest.raises(ConfigError, match="'sft' plays no episodes"):
        TrainConfig(algorithm="sft", task=refine)


def test_a_conversation_takes_more_options_which_are_checked_at_once() -> None:
    chat = TaskConfig(env="chat", max_turns=4, env_options={"user": ["Sure?"]})
    assert TrainConfig(task=chat).resolved_variant == "ppo-closed-answers-chat"
    with pytest.raises(ConfigError, match=r"option of env 'chat' 'usr'. Did you mean 'user'"):
        TaskConfig(env="chat", env_options={"usr": ["Sure?"]})
    with pytest.raises(ConfigError, match="env 'refine' takes no more options"):
        TaskConfig(env="refine", env_options={"user": ["Sure?"]})
    assert TrainConfig(algorithm="sft", task=chat).task.env == "chat"
    with pytest.raises(ConfigError, match=r"task\.env_options\.turn_reward instead"):
        TaskConfig(env="chat", turn_reward="last")


def test_a_given_name_and_variant_win() -> None:
    config = TrainConfig(name="first", variant="mine", seed=1)
    assert (config.resolved_variant, config.resolved_name) == ("mine", "first")


@pytest.mark.parametrize("name", ["a/b", "..", "", "-x", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name = .*output\.dir"):
        TrainConfig(name=name)


def test_settings_of_the_other_algorithm_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"sft\.max_steps, sft\.eval_every given.*'ppo'"):
        TrainConfig(sft=SFTConfig(max_steps=3, eval_every=1))
    with pytest.raises(ConfigError, match=r"ppo\.num_updates given.*'sft'"):
        TrainConfig(algorithm="sft", ppo=PPOConfig(num_updates=3))


@pytest.mark.parametrize("kind", [EvalConfig, EvaluateConfig])
def test_several_greedy_samples_are_refused(kind: type) -> None:
    with pytest.raises(ConfigError, match="same response every time"):
        kind(samples=4, temperature=0.0)
    assert kind(samples=4, temperature=1.0).samples == 4


@pytest.mark.parametrize("kind", [EvalConfig, EvaluateConfig, ChatConfig])
@pytest.mark.parametrize("key", ["max_new_tokens", "batch_size", "limit"])
def test_a_number_below_1_is_refused_before_anything_is_trained_or_replaced(
    kind: type, key: str
) -> None:
    if key in {field.name for field in dataclasses.fields(kind)}:
        with pytest.raises(ConfigError, match=f"{key} = 0: expected at least 1"):
            kind(**{key: 0})


def test_options_without_the_task_they_belong_to_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval\.options.*eval\.task"):
        EvalConfig(options={"size": 3})


def test_evaluation_draws_as_many_tokens_as_training_unless_told() -> None:
    ppo = PPOConfig(response_length=9, stop_strings=("\n",))
    sampling = TrainConfig(ppo=ppo).eval_sampling
    assert (sampling.max_new_tokens, sampling.stop_strings, sampling.greedy) == (9, ("\n",), True)
    told = TrainConfig(ppo=ppo, eval=EvalConfig(max_new_tokens=5, temperature=0.5, top_k=3))
    assert (told.eval_sampling.max_new_tokens, told.eval_sampling.top_k) == (5, 3)


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(ppo=PPOConfig(learning_rate=1e-5, stop_strings=("\n",)), seed=4),
        TrainConfig(algorithm="sft", sft=SFTConfig(max_steps=3)),
        TrainConfig(
            rewards={
                "exact_match": 0.5,
                "kind": "rewards.py:kind",
                "long": RewardSpec(use="bleu", weight=2.0, options={"smooth": "exp"}),
                "scaled": RewardSpec(normalise="clip", clip=(-1.0, 2.0), on_error="raise"),
                "gated": RewardSpec(use="gate", options={"parts": {"b": 1.0, "a": {"weight": 2}}}),
            },
            task=TaskConfig(options={"families": ["parity"], "size": 10}),
        ),
        TrainConfig(task=TaskConfig(env="refine", max_turns=2, turn_reward="last")),
        TrainConfig(task=TaskConfig(env="chat", env_options={"user": ["a"], "max_tokens": 9})),
    ],
)
def test_a_written_configuration_reads_back_as_the_same_run(
    config: TrainConfig, tmp_path: Path
) -> None:
    resolved = config.resolved()
    back = read_back(resolved, tmp_path / "config.yaml")
    assert back.to_dict() == resolved.to_dict()
    assert back.reward_value() == resolved.reward_value()


@pytest.mark.parametrize(
    ("task", "rewards"),
    [("unit_conversion", ["skill"]), ("parity", ["exact_match"]), ("unknown", ["exact_match"])],
)
def test_a_run_without_rewards_takes_those_of_its_task(task: str, rewards: list[str]) -> None:
    config = TrainConfig(task=TaskConfig(name=task))
    assert not config.rewards
    assert list(config.resolved().reward_value()) == rewards
    given = dataclasses.replace(config, rewards={"f1": 1.0})
    assert given.resolved().reward_value() == {"f1": 1.0}


def test_every_recipe_is_a_valid_configuration_of_its_own_variant() -> None:
    variants = set()
    recipes = sorted(RECIPES.glob("*.yaml"))
    expected = {"short_answers", "short_answers_sft", "short_answers_raft"}
    assert expected | {"arithmetic", "refine", "tiny_smoke"} <= {path.stem for path in recipes}
    for path in recipes:
        text = path.read_text(encoding="utf-8")
        assert all(f"# {word}:" in text for word in ("Question", "Command", "Cost", "Look at"))
        parser = make_parser("test", "")
        parser.add_argument("--config", action="config")
        kind = CONFIGS.get(command_of(yaml.safe_load(text)), TrainConfig)
        parser.add_class_arguments(kind)
        config = as_dataclass(kind, parse(parser, ["--config", str(path)]))
        variants.add(config.variant)
    assert len(variants) == len(recipes)


def test_the_baseline_has_the_start_and_the_rollouts_of_the_ppo_recipe() -> None:
    ppo, raft = (
        yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("short_answers", "short_answers_raft")
    )
    assert raft["algorithm"] == "raft" and raft["ppo"]["num_generations"] == 4
    for key in ("task", "policy", "rewards", "eval"):
        assert raft[key] == ppo[key]
    same = set(ppo["ppo"]) - {"entropy_coef", "entropy_target"}
    assert {key: raft["ppo"][key] for key in same} == {key: ppo["ppo"][key] for key in same}


def test_several_tries_differ_from_the_single_one_in_their_episodes_and_entropy_bonus_alone() -> (
    None
):
    one, several = (
        yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("short_answers", "refine")
    )
    assert several["task"]["name"] == one["task"]["name"] and several["task"]["env"] == "refine"
    assert {key: several[key] for key in ("policy", "rewards", "eval")} == {
        key: one[key] for key in ("policy", "rewards", "eval")
    }
    changed = {key for key, value in several["ppo"].items() if one["ppo"].get(key) != value}
    episodes = {"advantage", "gae_level", "gamma", "episodes_per_update"}
    assert changed == {*episodes, "entropy_coef"}  # a bonus blew up: what repeats earns nothing
    assert one["ppo"].keys() <= several["ppo"].keys()


def test_rejection_sampling_reads_the_section_of_ppo() -> None:
    ppo = PPOConfig(num_generations=4, kl_coef=0.0)
    values = TrainConfig(algorithm="raft", ppo=ppo).to_dict()
    assert values["ppo"]["num_generations"] == 4 and "sft" not in values
    assert TrainConfig(algorithm="raft", ppo=ppo).resolved_name == "raft-closed-answers-s0"
    with pytest.raises(ConfigError, match=r"ppo\.num_generations = 1: expected 2"):
        TrainConfig(algorithm="raft", ppo=PPOConfig(kl_coef=0.0))
    with pytest.raises(ConfigError, match=r"sft.max_steps given.*set algorithm to 'sft'"):
        TrainConfig(algorithm="raft", ppo=ppo, sft=SFTConfig(max_steps=3))


def test_the_quickstart_uses_the_settings_of_the_recipe() -> None:
    recipe = yaml.safe_load((RECIPES / "short_answers.yaml").read_text(encoding="utf-8"))
    stage = QuickstartConfig().stage("ppo", "runs", "m")
    given = {k: v for k, v in recipe["ppo"].items() if k not in ("eval_every", "save_every")}
    assert {k: getattr(stage.ppo, k) for k in given} == given
    assert stage.policy.train == recipe["policy"]["train"]


def test_both_sft_stages_of_the_quickstart_see_the_same_demonstrations() -> None:
    with pytest.raises(ConfigError, match="unfair"):
        QuickstartConfig(sft=SFTConfig(demonstrations=10))


def write_config(folder: Path, config: TrainConfig) -> None:
    folder.mkdir(parents=True)
    text = yaml.safe_dump(config.resolved().to_dict())
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def test_a_run_is_not_continued_with_other_settings(tmp_path: Path) -> None:
    config = TrainConfig(output=OutputConfig(dir=str(tmp_path)))
    write_config(config.folder, config)
    refuse_changed(config, config.folder)
    faster = dataclasses.replace(config, ppo=PPOConfig(learning_rate=1e-3))
    with pytest.raises(ConfigError, match=r"ppo\.learning_rate: 2e-05 -> 0\.001"):
        refuse_changed(faster, config.folder)


def test_a_run_may_be_continued_for_longer(tmp_path: Path) -> None:
    config = TrainConfig(output=OutputConfig(dir=str(tmp_path)))
    write_config(config.folder, config)
    longer = dataclasses.replace(config, ppo=PPOConfig(num_updates=99, save_every=3))
    refuse_changed(longer, config.folder)


def test_a_run_whose_critic_had_the_former_default_is_continued_at_that_rate(
    tmp_path: Path,
) -> None:
    output = OutputConfig(dir=str(tmp_path))
    for algorithm, ppo in (
        ("ppo", PPOConfig()),
        ("raft", PPOConfig(num_generations=4, kl_coef=0.0)),
        ("ppo", PPOConfig(critic="separate")),
    ):
        config = TrainConfig(algorithm=algorithm, ppo=ppo, output=output)  # type: ignore[arg-type]
        folder = tmp_path / algorithm / ppo.critic
        write_config(folder, config)
        refuse_changed(config, folder)
        path = folder / "config.yaml"
        written = path.read_text()
        assert "critic_learning_rate: null" in written
        path.write_text(
            written.replace("critic_learning_rate: null", "critic_learning_rate: 0.001")
        )
        if ppo.critic == "shared":
            refuse_changed(config, folder)
        else:  # the default is another rate by now, and the run would be another one
            with pytest.raises(ConfigError, match=r"critic_learning_rate: 0\.001 -> 2e-05"):
                refuse_changed(config, folder)
            explicit = dataclasses.replace(ppo, critic_learning_rate=1e-3)
            refuse_changed(dataclasses.replace(config, ppo=explicit), folder)


def test_limits_that_stopped_a_run_may_be_raised_when_it_goes_on(tmp_path: Path) -> None:
    config = TrainConfig(output=OutputConfig(dir=str(tmp_path)))
    write_config(config.folder, config)
    wider = PPOConfig(max_reward=1e6, max_drift=1.0, max_error_frac=0.5)
    refuse_changed(dataclasses.replace(config, ppo=wider), config.folder)


def test_how_a_reward_runs_may_change_but_not_what_it_says(tmp_path: Path) -> None:
    def with_reward(spec: RewardSpec) -> TrainConfig:
        output = OutputConfig(dir=str(tmp_path))
        return TrainConfig(rewards={"exact_match": spec}, output=output)

    config = with_reward(RewardSpec(weight=2.0))
    write_config(config.folder, config)
    elsewhere = RewardSpec(weight=2.0, isolation="worker", workers=2, on_error="raise")
    refuse_changed(with_reward(elsewhere), config.folder)
    for other in (
        RewardSpec(weight=2.0, normalise="batch"),
        RewardSpec(weight=2.0, options={"workers": 2}),
    ):
        with pytest.raises(ConfigError, match=r"rewards\.exact_match"):
            refuse_changed(with_reward(other), config.folder)


@pytest.mark.parametrize("text", [None, ": ["])
def test_a_run_without_readable_settings_is_not_continued(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.yaml cannot be read"):
        keep_chosen(TrainConfig(), tmp_path)


def test_a_continued_run_keeps_its_micro_batch_unless_another_is_asked_for(tmp_path: Path) -> None:
    chosen = dataclasses.replace(
        TrainConfig(), ppo=PPOConfig(micro_batch_size=4, micro_batch_tokens=512)
    )
    folder = tmp_path / "run"
    write_config(folder, chosen)
    assert keep_chosen(TrainConfig(), folder).ppo == chosen.ppo
    other = dataclasses.replace(TrainConfig(), ppo=PPOConfig(micro_batch_tokens=256))
    assert keep_chosen(other, folder).ppo.micro_batch_tokens == 256  # and is refused as changed
    explicit = dataclasses.replace(TrainConfig(), ppo=PPOConfig(micro_batch_size=4))
    assert keep_chosen(explicit, folder).ppo == explicit.ppo


def test_flatten_keeps_empty_mappings_as_values() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}
