"""From a configuration to the things that a run needs, checked before anything is spent on them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec import processes
from instructrec.envs.tasks.base import Instruction, Task, make_task
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import ConfigError, DataError, PolicyError
from instructrec.experiments.command_line import RECIPES, command_of
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.corpus import CorpusMetrics
from instructrec.experiments.kept_tasks import KeptTask, read_kept
from instructrec.experiments.runfolder import RunInfo
from instructrec.experiments.yaml_files import read_yaml
from instructrec.policies.base import Policy
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.rewards.combine import CombinedReward, make_rewards
from instructrec.rewards.local_models import ModelReward
from instructrec.rl.monitor_config import check_gold

if TYPE_CHECKING:
    from instructrec.experiments.reward_model_config import RewardModelConfig
    from instructrec.policies.model_policy import ModelPolicy
    from instructrec.rl.run_state import TrainingResult

CHECKED_PROMPTS = 20_000
"""Instructions of each split whose length is looked at before a run begins."""

LoadPolicy = Callable[..., "ModelPolicy"]
"""Loads a policy with a seed and its default sampling, such as `load`."""


@dataclass(frozen=True)
class Materials:
    """Tasks and rewards of a run; making them costs little and finds most mistakes."""

    train: Task
    """Instructions to learn from."""
    validation: Task
    """Instructions of the evaluations during training."""
    test: Task
    """Instructions of the final evaluation."""
    reward: CombinedReward
    """The rewards."""
    kept: tuple[KeptTask, ...] = ()
    """Old tasks on which is measured what was forgotten."""

    @property
    def splits(self) -> dict[str, Task]:
        """The tasks by the name of their split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def make_materials(config: TrainConfig) -> Materials:
    """Makes tasks and rewards.

    Raises:
        ConfigError: A task, split, reward or option is unknown.
        DataError: A split is empty, or lacks a column that a reward needs.
    """
    task = config.task
    train = _make_split(task.name, task.train_split, task.options)
    validation = _make_split(task.name, task.validation_split, task.options)
    if config.eval.task is None:
        test = _make_split(task.name, task.test_split, task.options)
    else:
        test = _make_split(config.eval.task, task.test_split, config.eval.options, "eval.options")
    reward = make_rewards(config.resolved().reward_value())
    check_gold(config.ppo.monitors, reward.names)
    for each in (train, validation, test):
        reward.check_columns([*each.columns, *task.episodes.told])
    CorpusMetrics(config.eval.corpus_metrics, config.eval.corpus_references).check_columns(
        test.columns
    )
    return Materials(train, validation, test, reward, read_kept(config.eval.keep_tasks))


def training_env(config: TrainConfig, materials: Materials) -> InstructionVectorEnv:
    """Makes the environment of this process's share of the episodes of an update.

    Raises:
        ConfigError: A reward is normalised in a way that does not fit the episodes.
    """
    _check_normalisation(config, materials.reward)
    return config.task.episodes.make(
        config.ppo.episodes_per_update // processes.world_size(),
        materials.train,
        materials.reward,
        turn_reward=config.task.turn_reward,
    )


def _check_normalisation(config: TrainConfig, reward: CombinedReward) -> None:
    """Refuses ways to normalise that would leave nothing, or nothing sensible, to learn from."""
    for name in reward.normalises:
        how = reward.parts[name].spec.normalise
        if how == "group" and config.ppo.num_generations < 2:
            raise ConfigError(
                f"rewards.{name}.normalise = 'group' with ppo.num_generations = "
                f"{config.ppo.num_generations}: a group of one response has no spread, all scores "
                "would be 0. Expected ppo.num_generations of 2 or more, or normalise: running."
            )
        if config.task.episodes.several and how != "clip":
            raise ConfigError(
                f"rewards.{name}.normalise = {how!r} with task.env = {config.task.env!r}: the "
                "answers of an episode add up, but each would be on the scale of another batch. "
                "Expected normalise none or clip."
            )


def _make_split(
    name: str, split: str, options: Mapping[str, Any], key: str = "task.options"
) -> Task:
    try:
        task = make_task(name, split=split, **options)
    except ConfigError as error:
        if not any(repr(option) in str(error) for option in options):
            raise
        raise ConfigError(
            f"{error} (Options of a recipe stay when the command line names another task: "
            f"--{key} '{{}}' drops them.)"
        ) from error
    if len(task) == 0:
        raise DataError(f"the {split} split of {name!r} is empty; expected instructions.")
    return task


def check_prompts(policy: Policy, tasks: Iterable[Task], response_length: int = 1) -> None:
    """Refuses instructions that do not fit into the model's window, before anything is spent.

    Args:
        policy: Who will answer; one that has no tokens is not asked.
        tasks: The instructions; the first ``CHECKED_PROMPTS`` of each are looked at.
        response_length: Most tokens of an answer, which have to fit in as well.

    Raises:
        DataError: An instruction is too long, or the chat template refuses it.
    """
    encode: Any = getattr(policy, "encode", None)
    window: int | None = getattr(policy, "max_length", None)
    if encode is None:
        return
    for task in tasks:
        for start in range(0, min(len(task), CHECKED_PROMPTS), 1000):
            items = [task[i] for i in range(start, min(start + 1000, len(task)))]
            try:
                encoded = encode([item.prompt for item in items])
            except PolicyError:
                for item in items:
                    _check_prompt(encode, item, task.split)
                raise
            for item, ids in zip(items, encoded, strict=True):
                if window is not None and len(ids) + response_length > window:
                    raise DataError(
                        f"instruction {item.id!r} of the {task.split} split: its prompt of "
                        f"{len(ids)} tokens (what the environment puts before it counts) and a "
                        f"response of up to {response_length} do not fit into the model's window "
                        f"of {window}. Lower ppo.response_length (or "
                        "eval.max_new_tokens), leave long rows out with task.options.filters, or "
                        "use a model with a longer window."
                    )


def check_all_prompts(policy: Policy, materials: Materials, config: TrainConfig) -> None:
    """Refuses a run of whose splits an instruction does not fit beside its response.

    Tools that stand before the instructions are parts of the prompts.

    Raises:
        DataError: See ``check_prompts``.
    """
    episodes, reward = config.task.episodes, materials.reward
    kept = [each.episodes.shown(each.task, each.reward) for each in materials.kept]
    measured = [episodes.shown(task, reward) for task in (materials.validation, materials.test)]
    train = episodes.shown(materials.train, reward)
    answer = 0 if config.has_labels else config.ppo.response_length
    measured_answer = 0 if config.has_labels else config.eval_sampling.max_new_tokens
    check_prompts(policy, (train,), answer)
    check_prompts(policy, (*measured, *kept), measured_answer)


def _check_prompt(encode: Any, item: Instruction, split: str) -> None:
    try:
        encode([item.prompt])
    except PolicyError as error:
        reason = str(error).replace("prompt 0 has", "its prompt has", 1)
        raise DataError(f"instruction {item.id!r} of the {split} split: {reason}") from error


def with_micro_batch(config: TrainConfig, policy: ModelPolicy) -> TrainConfig:
    """The same run with a micro-batch for its episodes, processes and memory."""
    from instructrec.rl.micro_batches import with_micro_batch

    ppo = with_micro_batch(policy, config.ppo, config.task.episodes.most_turns)
    return replace(config, ppo=ppo)


def model_folder(model: str) -> str:
    """Turns a run folder into the folder of its policy; other models stay as they are.

    Raises:
        PolicyError: The folder is missing, or holds a run without an exported policy.
    """
    path = Path(model)
    if (path / "run.json").is_file():
        if not (path / "policy").is_dir():
            raise PolicyError(
                f"{path} is a run folder without a policy/: its run has not finished, or was made "
                "with output.export_policy = false. Finish it with --resume, or name another one."
            )
        return str(path / "policy")
    if not path.exists() and _is_place(model):
        raise PolicyError(f"policy.model = {model!r}: there is no such folder.{_how_to_make(path)}")
    return model


def _is_place(model: str) -> bool:
    """Whether a model is meant as a folder: a hub id is a name, or an owner and a name."""
    path = Path(model)
    return path.is_absolute() or model[0] in ".~" or len(path.parts) > 2 or path.parts[0] == "runs"


def _how_to_make(path: Path) -> str:
    """Names the shipped recipe whose run folder this would be."""
    for recipe in sorted(RECIPES.glob("*.yaml")):
        settings = read_yaml(recipe)
        variant, _, seed = path.name.rpartition("-s")
        if settings.get("variant") == variant and seed.isdigit():
            words = ["instructrec", command_of(settings), recipe.stem]
            words += [] if seed == "0" else ["--seed", seed]
            return f" Make it with: {shlex.join(words)}"
    return " Name a run folder, a Hugging Face folder, a hub id, or smollm2-135m."


def run_info(config: TrainConfig | RewardModelConfig, model: str) -> RunInfo:
    """What a training run is called.

    Args:
        config: The run.
        model: Name or folder of the model that it starts from; see ``model_folder``.
    """
    of_a_run = Path(model).name in ("policy", ModelReward.exported)
    parent = Path(model).parent if of_a_run else None
    return RunInfo(
        job_type=config.job_type,
        algorithm=config.algorithm,
        variant=config.resolved_variant,
        seed=config.seed,
        base_model=config.policy.model,
        task=config.task.name,
        parent=None if parent is None else str(parent),
    )


def policy_name(info: RunInfo) -> str:
    """What a trained policy is called, wherever its run folder lies."""
    return info.variant if info.seed is None else f"{info.variant}-s{info.seed}"


def load(
    config: PolicyConfig, seed: int, sampling: Sampling, *, labels: bool = False
) -> ModelPolicy:
    """Loads the policy (imports torch).

    Args:
        config: Which.
        seed: Seed of what it draws.
        sampling: How it answers by default.
        labels: Whether it is to get a head of labels, for which an encoder is good, too.
    """
    from instructrec.policies.causal_lm import load_policy

    return load_policy(config, seed=seed, sampling=sampling, labels=labels)


def learner(algorithm: str) -> Callable[..., TrainingResult]:
    """The function that learns from rollouts (imports torch and TRL).

    Args:
        algorithm: ``ppo`` or ``raft``.
    """
    from instructrec.rl.ppo import train_ppo
    from instructrec.rl.raft import train_raft

    return train_raft if algorithm == "raft" else train_ppo
