"""What a run says to the person in front of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from instructrec import processes
from instructrec.experiments import before_after, bounds, classes, speeds
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.playing import SINGLE_ANSWERS, Episodes
from instructrec.experiments.progress import format_duration
from instructrec.experiments.runfolder import RunFolder
from instructrec.policies.config import Sampling

if TYPE_CHECKING:
    from instructrec.experiments.setup_run import Materials
    from instructrec.policies.model_policy import ModelPolicy

UNKNOWN_BEFORE = (
    "better than before? Not known: no evaluation of the start with the same instructions, rewards "
    "and way to answer. --eval.before true makes one; `instructrec compare --metric` compares two "
    "that have a reward in common."
)
Say = Callable[[str], None]
"""Receives one line or paragraph for people."""


def say(text: str) -> None:
    """Prints at once, also into a pipe; nobody is told once the pipe's reader has gone."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head`, or a closed viewer: no reason to end a training run
        lead_nowhere(sys.stdout)


def lead_nowhere(stream: TextIO) -> None:
    """Sends what is still written to a stream nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def say_nothing(text: str) -> None:
    """What every process but the main one says."""


def decoding(
    sampling: Sampling,
    samples: int = 1,
    limit: int | None = None,
    seed: int = 0,
    episodes: Episodes = SINGLE_ANSWERS,
) -> str:
    """Short name of a way to answer: ``greedy``, ``greedy_first400``, ``refine3_t1.0_x8``.

    Args:
        sampling: How responses are drawn.
        samples: Responses per instruction.
        limit: Most instructions; None takes all.
        seed: Seed of the sampling; it does not matter to greedy decoding.
        episodes: What an episode is.
    """
    name = f"{episodes.label}_" if episodes.several else ""
    name += "greedy" if sampling.greedy else f"t{round(sampling.temperature, 4)}"
    name += f"_p{sampling.top_p:g}" if sampling.top_p < 1 else ""
    name += f"_k{sampling.top_k}" if sampling.top_k else ""
    name += f"_x{samples}" if samples > 1 else ""
    name += f"_first{limit}" if limit is not None else ""
    return name + (f"_seed{seed}" if seed and not sampling.greedy else "")


def announce(
    config: TrainConfig, materials: Materials, policy: ModelPolicy, folder: Path, say: Say
) -> None:
    """Says what is about to run: model, device, data, amount of work, place."""
    from instructrec.devices import describe

    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in policy.model.parameters())
    task = materials.train
    lines = [
        f"policy   {config.policy.model}: {trained / 1e6:.1f} of {total / 1e6:.1f} million weights "
        f"train ({config.policy.train})",
        f"device   {describe(policy.device, policy.compute_dtype)}{_others()}",
        f"task     {task.name}: {len(task)} to train on, {len(materials.validation)} for "
        f"validation, {len(materials.test)} for the final test",
        f"reward   {materials.reward.describe()}",
        f"work     {_work(config)}",
        f"folder   {folder}",
    ]
    say("\n".join(lines))


def _others() -> str:
    count = processes.world_size()
    return f", in each of {count} processes" if count > 1 else ""


def _work(config: TrainConfig) -> str:
    if config.supervised is not None:
        given = f"{config.sft.demonstrations} demonstrations"
        if config.algorithm == "dpo":
            given = f"{config.dpo.pairs} pairs"
        return f"at most {config.steps} steps of {config.supervised.batch_size}, on {given}"
    ppo = config.ppo
    return (
        f"{ppo.num_updates} updates of {ppo.episodes_per_update} episodes "
        f"({ppo.num_updates * ppo.episodes_per_update} in all), "
        f"{ppo.num_ppo_epochs} epochs x {ppo.num_mini_batches} minibatches each"
    )


def conclude(
    config: TrainConfig, folder: RunFolder, summary: Mapping[str, Any], where: str, say: Say
) -> None:
    """Says how a run ended, in words, and where everything lies."""
    unit = "updates" if config.supervised is None else "steps"
    duration = format_duration(summary["train_s"])
    first = f"{config.algorithm} ran {summary['updates']} {unit} in {duration}"
    if summary["stopped"] == "early_stopping":
        first += ", stopped early because validation no longer improved"
    if summary["stopped"] == "pruned":
        first += ", and was pruned: others did better up to there"
    if summary["best_update"] != summary["updates"]:
        first += f"; the policy kept is that of number {summary['best_update']}"
    lines = ["", first + ".", *_better(folder), *_kept(summary)]
    if "classes" in summary:
        lines.append(classes.table(summary["classes"]))
    if "critic_updates" in summary:
        lines.append(_critic(summary["critic_updates"], summary["updates"]))
    if told := speeds.in_words(summary):
        lines.append(f"speed: {told}.")
    rewards = list(config.reward_value())
    shown = [*rewards, "total"] if len(rewards) > 1 else rewards
    corpus = [key for key in summary if key.startswith("eval/corpus/") and key.endswith("/score")]
    shown += [key.removeprefix("eval/").removesuffix("/score") for key in corpus]
    lines += [line for name in shown if (line := measured(name, summary))]
    lines += bounds.in_words(summary)
    if "eval/first_turn" in summary:
        lines.append(
            f"held-out first answers: {summary['eval/first_turn']:.3f}; "
            f"{summary['eval/turns']:.2f} answers to an instruction in the mean"
        )
    lines += [
        "",
        f"summary      {folder.path / 'summary.json'}",
        f"metrics      {folder.metrics_path}",
        f"responses    {folder.path / summary['eval_file']}",
    ]
    if config.output.export_policy:
        lines.append(f"policy       {folder.policy}")
    if where:
        lines.append(f"tracking     {where}")
    lines += [
        f"report       instructrec report {folder.path}",
        f"look closer  instructrec evaluate {folder.path} --samples 8 --temperature 1",
    ]
    say("\n".join(lines))


def _better(folder: RunFolder) -> list[str]:
    """Whether the policy is better than its start, where an evaluation of it can be found."""
    after = before_after.read_evaluation(folder.path)
    before = before_after.find_before(folder, after)
    found = [] if before is None else before_after.changes(before, after)
    if not found:
        return [UNKNOWN_BEFORE]
    table = [before_after.table(found)] if len(found) > 2 else []  # the total, and what it is of
    return [found[0].in_words(), *table]


def _kept(summary: Mapping[str, Any]) -> list[str]:
    """What became of old tasks."""
    return [
        before_after.kept_in_words(name, found) for name, found in summary.get("kept", {}).items()
    ]


def _critic(used: int, updates: int) -> str:
    """What the critic was good for."""
    if used == updates:
        return f"the critic was the baseline in all {updates} updates."
    told = f"in {used} of {updates} updates" if used else f"in none of {updates} updates (idle)"
    return f"the critic was the baseline {told}, else the mean return."


def measured(name: str, summary: Mapping[str, Any]) -> str:
    """One line for a reward measured on held-out instructions; empty when it was not."""
    mean = summary.get(f"eval/{name}/mean", summary.get(f"eval/{name}/score"))
    if mean is None:
        return ""
    low, high = summary.get(f"eval/{name}/ci_low"), summary.get(f"eval/{name}/ci_high")
    interval = "" if low is None or high is None else f", 95 % interval {low:.3f} to {high:.3f}"
    return f"held-out {name}: {mean:.3f}{interval}"
