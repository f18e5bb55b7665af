"""``instructrec evaluate``: one policy, one task, one table; by one process or several."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instructrec import processes
from instructrec.envs.tasks.augmented import KINDS
from instructrec.envs.tasks.base import Task, default_rewards, make_task
from instructrec.errors import ConfigError
from instructrec.experiments import robustness, setup_run, telling, verification
from instructrec.experiments.bounds import SCRIPTED, Bounds, measure_bounds, scripted_policy
from instructrec.experiments.config import EvaluateConfig, reward_value
from instructrec.experiments.corpus import CorpusMetrics
from instructrec.experiments.env_commands import shown
from instructrec.experiments.evaluation import Evaluation, evaluate
from instructrec.experiments.evaluation_place import place
from instructrec.experiments.evaluation_report import report, track
from instructrec.experiments.playing import Episodes
from instructrec.experiments.recorded import Recorded, read_recorded
from instructrec.experiments.runfolder import RunFolder
from instructrec.experiments.tracking import note_unused
from instructrec.policies import scripted
from instructrec.policies.base import Policy
from instructrec.policies.config import EndpointConfig, LoraSettings, PolicyConfig, Sampling
from instructrec.policies.endpoint import EndpointPolicy, is_endpoint
from instructrec.rewards.combine import CombinedReward, make_rewards

_DEFAULT_TASK, _DEFAULT_TOKENS = "closed_answers", 64


@dataclass(frozen=True)
class Plan:
    """An evaluation with every open setting filled in."""

    task: str
    """Task."""
    options: dict[str, Any]
    """Its options."""
    split: str
    """Split."""
    episodes: Episodes
    """What an episode is."""
    rewards: Any
    """What is measured; None takes the task's own."""
    sampling: Sampling
    """How responses are drawn."""
    samples: int
    """Responses to each instruction."""
    limit: int | None
    """Most instructions; None takes all."""
    policy: PolicyConfig
    """How the policy is loaded."""
    corpus: CorpusMetrics
    """Metrics of all responses together."""
    recorded: Recorded | None = None
    """The responses that are given again, where the policy is a file of them."""


def run_evaluation(
    policy: str,
    config: EvaluateConfig,
    *,
    robust: bool = False,
    overwrite: bool = False,
    command: Sequence[str] | None = None,
    say: telling.Say = telling.say,
) -> Evaluation:
    """Evaluates a policy; the rows go to its run folder, or to one of their own.

    Args:
        policy: A run folder, a Hugging Face folder or hub id, a model name, the address of a
            server up to ``/v1``, one of ``oracle``, ``random``, ``empty``, or the ``.jsonl`` of an
            earlier evaluation, whose responses are given again (to measure other rewards on them).
            The weights of a run folder must be those that its run recorded.
        config: What is measured, and how.
        robust: Measure it on the same instructions in other words, too.
        overwrite: Delete an earlier evaluation in the same place.
        command: The command line after the program's name, for the record.
        say: Receives lines for people.

    Raises:
        InstructRecError: Policy, data or rewards cannot be used, or not by several processes.
        SystemExit: The same, in another process than the main one of several.
    """
    kinds = _kinds(policy, config, robust)
    _check_policy(policy, config)
    with processes.joined(config.device), ExitStack() as stack:
        say = say if processes.is_main() else telling.say_nothing
        note_unused(config.tracking, say)
        run = RunFolder.open(policy) if (Path(policy) / "run.json").is_file() else None
        plan, task, reward, answering = processes.together(lambda: _prepare(policy, config, run))
        _share(answering, task, reward, config.seed)
        hold = stack.enter_context
        own, file = processes.from_main(
            lambda: place(policy, plan, config, run, overwrite, command, hold)
        )
        if own is not None and processes.is_main():
            hold(own)  # which records how it ends
        measure = _measurement(plan, config.batch_size, reward, answering)
        evaluation, others = measure(task, file), []
        if robust:
            others = robustness.measure_robustness(
                task, evaluation, measure, file, seed=config.seed, overwrite=overwrite, kinds=kinds
            )
        bounds = _bounds(policy, plan, task, reward, config, file)
        if own is not None:
            summary: dict[str, Any] = {**evaluation.metrics(), **robustness.metrics(others)}
            summary["eval_file"] = f"eval/{file.name}"
            processes.on_main(lambda: own.finish("finished", summary))
        processes.on_main(lambda: _track(policy, evaluation, own or run, config, say))
    tables = [report(policy, evaluation, bounds), *([robustness.report(others)] if others else [])]
    say(shown("\n\n".join([*tables, f"responses    {file}"])))
    return evaluation


def _check_policy(policy: str, config: EvaluateConfig) -> None:
    if config.endpoint != EndpointConfig() and not is_endpoint(policy):
        raise ConfigError(
            f"endpoint.* given, but {policy!r} is no server: expected an address such as "
            "http://localhost:8000/v1."
        )
    if is_without_weights(policy):
        processes.refuse_several(f"an evaluation of {policy!r}, which has no model to wait for,")


def _kinds(policy: str, config: EvaluateConfig, robust: bool) -> Sequence[str]:
    """The other wordings, checked before anything is measured."""
    if not robust:
        if config.robustness_kinds is not None:
            raise ConfigError(
                "robustness_kinds given, but other wordings are not measured: add --robustness "
                "(robust=True in Python)."
            )
        return ()
    robustness.refuse_replay(policy)
    kinds = KINDS if config.robustness_kinds is None else config.robustness_kinds
    robustness.check_kinds(kinds)
    return kinds


def _bounds(
    policy: str, plan: Plan, task: Task, reward: CombinedReward, config: EvaluateConfig, rows: Path
) -> Bounds | None:
    """What scripted policies get, written beside the rows; None unless wanted."""
    if not config.bounds or policy in SCRIPTED:
        return None
    found = measure_bounds(task, reward, limit=plan.limit, episodes=plan.episodes, seed=config.seed)
    processes.on_main(lambda: found.write(rows))
    return found


def _track(
    policy: str,
    evaluation: Evaluation,
    folder: RunFolder | None,
    config: EvaluateConfig,
    say: telling.Say,
) -> None:
    if folder is not None and config.tracking.mode != "disabled":
        track(policy, evaluation, folder.path, config.tracking, say=say)


def _prepare(
    policy: str, config: EvaluateConfig, run: RunFolder | None
) -> tuple[Plan, Task, CombinedReward, Policy]:
    """What is measured, on what, by which rewards, and who answers."""
    plan, task = open_task(make_plan(policy, config, run), named=config.task is not None)
    if plan.rewards is None:
        plan = replace(plan, rewards=default_rewards(task))
    reward = make_rewards(plan.rewards)
    reward.check_columns([*task.columns, *plan.episodes.told])
    plan.corpus.check_columns(task.columns)
    answering = load(policy, plan, config)
    if run is not None:
        with_weights: Any = answering  # a run's policy has weights
        verification.check_loaded(with_weights.weights_hash(), run)
        answering.name = setup_run.policy_name(run.info())
    return plan, task, reward, answering


def _measurement(
    plan: Plan, batch_size: int, reward: CombinedReward, answering: Policy
) -> robustness.Measure:
    """What evaluates the policy on a task and writes the rows to a file."""

    def measure(task: Task, out: Path) -> Evaluation:
        return evaluate(
            answering,
            task,
            reward,
            sampling=plan.sampling,
            samples=plan.samples,
            batch_size=batch_size,
            limit=plan.limit,
            episodes=plan.episodes,
            corpus=plan.corpus,
            out=out,
        )

    return measure


def _share(policy: Any, task: Task, reward: CombinedReward, seed: int) -> None:
    """Makes sure that several processes measure the same, each with draws of its own."""
    if processes.world_size() > 1:
        from instructrec.rl import sharing

        sharing.check_stateless(reward)
        sharing.check_same_task(task)
        sharing.share_start(policy, [policy.model])
        sharing.seed_own_draws(policy, seed)


def make_plan(policy: str, config: EvaluateConfig, run: RunFolder | None) -> Plan:
    """Fills in what was left open, from the run folder where there is one.

    Args:
        policy: As on the command line.
        config: What was asked for.
        run: The policy's run folder, if it has one.
    """
    before = run.config() if run is not None else {}
    recorded = read_recorded(policy)
    made_of = recorded.header if recorded is not None else {}
    trained_on = before.get("task", {})
    if config.task is None and isinstance(trained_on, dict):
        task = trained_on.get("name") or made_of.get("task") or _DEFAULT_TASK
        options = {**trained_on.get("options", {}), **config.options}
        split = config.split or trained_on.get("test_split") or made_of.get("split") or "test"
    else:
        task, options, split = config.task or _DEFAULT_TASK, config.options, config.split or "test"
    rewards = reward_value(config.rewards) if config.rewards else before.get("rewards")
    return Plan(
        task=task,
        options=options,
        split=split,
        episodes=_episodes(policy, config, trained_on),
        rewards=rewards,
        sampling=_sampling(config, before, recorded),
        samples=recorded.samples(config.samples) if recorded else config.samples or 1,
        limit=config.limit,
        policy=_policy_config(policy, config, before.get("policy", {})),
        corpus=_corpus(config, before.get("eval", {})),
        recorded=recorded,
    )


def open_task(plan: Plan, *, named: bool) -> tuple[Plan, Task]:
    """Opens the task of a plan, and takes as many instructions as recorded responses are for.

    Args:
        plan: The plan.
        named: Whether the task was asked for, and not taken from a run or a file.

    Raises:
        ConfigError: There is no such task.
        DataError: A file of responses has too few, or was made of other instructions.
    """
    recorded = plan.recorded
    try:
        task = make_task(plan.task, split=plan.split, **plan.options)
    except ConfigError as error:
        if named or recorded is None:
            raise
        raise ConfigError(
            f"{error} ({recorded.file} was made with that task: name it with --task.)"
        ) from error
    if recorded is None:
        return plan, task
    if not named:
        recorded.check_task(task)
    return replace(plan, limit=recorded.limit(plan.limit, task)), task


def _sampling(
    config: EvaluateConfig, before: dict[str, Any], recorded: Recorded | None
) -> Sampling:
    """How responses are drawn: as asked for, the budget else as in the run; or as they were."""
    if recorded is not None:
        return recorded.sampling(config)
    config = replace(config, temperature=config.temperature or 0.0)  # refuses several greedy ones
    tokens = config.max_new_tokens or before.get("eval", {}).get("max_new_tokens")
    tokens = tokens or before.get("ppo", {}).get("response_length") or _DEFAULT_TOKENS
    return Sampling(
        max_new_tokens=tokens,
        temperature=config.temperature or 0.0,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
        stop_strings=tuple(before.get("ppo", {}).get("stop_strings", ())),
    )


def _corpus(config: EvaluateConfig, before: dict[str, Any]) -> CorpusMetrics:
    """Corpus metrics as asked for, else as in the run's final evaluation."""
    names, column = config.corpus_metrics, config.corpus_references
    return CorpusMetrics(
        tuple(before.get("corpus_metrics", ()) if names is None else names),
        column or before.get("corpus_references", CorpusMetrics.references),
    )


def _episodes(policy: str, config: EvaluateConfig, trained_on: Any) -> Episodes:
    """What an episode is: as asked for, else as in the run's training, else a single answer."""
    before = trained_on if isinstance(trained_on, dict) else {}
    env = config.env or before.get("env", "instruction")
    options = before.get("env_options", {}) if env == before.get("env") else {}
    if config.env_options is not None:
        options = config.env_options
    if env == "instruction":
        if config.max_turns is not None:
            raise ConfigError(
                f"max_turns = {config.max_turns} given, but with env {env!r} an episode has a "
                "single answer: remove it, or set env to 'refine'."
            )
        return Episodes("instruction", options=options)
    if policy.endswith(".jsonl"):
        raise ConfigError(
            f"env = {env!r} with the responses of {policy}, which were not given to what would "
            "be said now: expected env 'instruction', which scores the last answers."
        )
    most = config.max_turns or before.get("max_turns", Episodes.max_turns)
    return Episodes(env, most, options)


def _policy_config(policy: str, config: EvaluateConfig, before: dict[str, Any]) -> PolicyConfig:
    """How the policy is loaded: as it was trained, adapters included, so that its hash agrees."""
    lora = LoraSettings(**before.get("lora", {}))
    names = ("train", "num_layers", "system_prompt", "quantization")
    kept = {name: before[name] for name in names if name in before}
    if before.get("train") == "lora":
        kept.pop("num_layers", None)  # the saved adapter knows its layers
    if config.system_prompt is not None:
        kept["system_prompt"] = config.system_prompt
    return PolicyConfig(
        model=policy if is_without_weights(policy) else setup_run.model_folder(policy),
        dtype=config.dtype,
        device=config.device,
        lora=lora,
        **kept,
    )


def is_without_weights(policy: str) -> bool:
    """Whether no model is loaded for a policy of this name."""
    return policy in SCRIPTED or policy.endswith(".jsonl") or is_endpoint(policy)


def load(policy: str, plan: Plan, config: EvaluateConfig) -> Policy:
    """Makes the policy of a name; see `run_evaluation`."""
    if is_endpoint(policy):
        return EndpointPolicy(
            policy,
            config.endpoint,
            system_prompt=plan.policy.system_prompt,
            sampling=plan.sampling,
            seed=config.seed,
        )
    if policy in SCRIPTED:
        return scripted_policy(policy, config.seed)
    if policy.endswith(".jsonl"):
        return scripted.ReplayPolicy(policy)
    return setup_run.load(plan.policy, config.seed, plan.sampling)


if __name__ == "__main__":
    from instructrec.experiments.cli import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))
