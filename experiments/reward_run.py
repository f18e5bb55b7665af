"""``instructrec train-reward``: from preferences to a reward model and what it has learned."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec import processes
from instructrec.errors import RunInterrupted
from instructrec.experiments import (
    command_line,
    continuing,
    data_lock,
    preference_data,
    reward_report,
    seed_flags,
    setup_run,
    speeds,
    telling,
)
from instructrec.experiments.interruption import StopRequest
from instructrec.experiments.locks import held
from instructrec.experiments.preference_data import Parts
from instructrec.experiments.progress import Progress, format_duration
from instructrec.experiments.recording import Recorder
from instructrec.experiments.reward_model_config import RewardModelConfig, refuse_changed
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.staging import staged
from instructrec.rewards.local_models import ModelReward
from instructrec.rl.checkpoint import update_of
from instructrec.rl.checkpoint_keeping import take_up

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from instructrec.rl.fitting import FitResult, Surroundings


@dataclass(frozen=True)
class Learned:
    """What an algorithm hands back."""

    result: FitResult
    """How fitting ended."""
    metrics: dict[str, float]
    """Numbers on held-out data, by metric key."""
    save: Callable[[Path], None]
    """Writes the model into a folder."""
    rows: list[dict[str, Any]]
    """Held-out rows with their scores."""
    report: dict[str, Any]
    """The numbers in full: content of ``reward_report.json``."""


Learn = Callable[[RewardModelConfig, str, Parts, "Surroundings"], Learned]
"""Trains: the run, the folder or name of the base, the data, and whom to report to."""


@dataclass(frozen=True)
class RewardOutcome:
    """What the training of a reward model left behind."""

    folder: RunFolder
    """The run folder; the model lies in its ``reward_model/``."""
    summary: dict[str, Any]
    """Content of its ``summary.json``."""


def run_reward_training(
    config: RewardModelConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_change: Sequence[str] = (),
    command: Sequence[str] | None = None,
    say: telling.Say = telling.say,
) -> RewardOutcome:
    """Trains a reward model, measures it on held-out pairs, and writes everything to a run folder.

    A first SIGINT, SIGTERM, SIGHUP or SIGUSR1 ends training behind a checkpoint, and the measuring
    behind it at once; any other ends the run at once.

    Args:
        config: The run.
        resume: Go on from the folder's newest checkpoint; begin anew where there is none.
        overwrite: Delete an existing run of this name.
        allow_change: What may differ when a run is resumed: keys, ``data``, ``versions``.
        command: The command line after the program's name, for the record.
        say: Receives lines for people.

    Raises:
        InstructRecError: Settings, data or model cannot be used.
        RunInterrupted: It was stopped, and there is a checkpoint; ``resume`` continues it.
        KeyboardInterrupt: It was stopped, and there is none.
    """
    processes.refuse_several("the training of a reward model")
    continuing.check_flags(resume, overwrite, allow_change)
    config = config.resolved()
    resume = resume and config.folder.exists()
    if resume:
        refuse_changed(config, config.folder, allow_change)
        done = RunFolder.open(config.folder)
        if done.record().get("status") == "finished":
            say(f"{config.folder} has finished already")
            return RewardOutcome(done, done.summary())
    splits = preference_data.open_splits(config.task)
    if resume and "data" not in allow_change:
        data_lock.refuse_other_data(config.folder, splits)
    items = _read(config, splits)
    base = _base_of(config)
    with held(config.folder, "reward-model"):
        folder = RunFolder.create(
            config.folder,
            setup_run.run_info(config, base),
            config.to_dict(),
            resume=resume,
            overwrite=overwrite,
            command=None if command is None else ["instructrec", *command],
        )
        continuing.note(folder, splits, allow_change)
        say(
            f"training {config.algorithm} on {len(items.train)} pairs of {config.task.name}; "
            f"held out: {len(items.validation)} for validation, {len(items.test)} for the test; "
            f"run folder {folder.path}"
        )
        with folder, StopRequest() as stop:
            summary = _train(config, folder, base, items, stop, resume, allow_change, say)
    return RewardOutcome(folder, summary)


def _read(config: RewardModelConfig, splits: data_lock.Splits) -> Parts:
    """Reads the data and refuses instructions with more than one use."""
    task = config.task
    read: Callable[..., list[Any]] = preference_data.read_pairs
    if config.algorithm == "alignment":
        read = preference_data.read_demonstrations
    items = Parts(
        read(splits["train"], task.limit),
        read(splits["validation"], task.validation_limit),
        read(splits["test"], task.test_limit) if "test" in splits else [],
    )
    preference_data.refuse_leakage(items.train, items.validation)
    preference_data.refuse_leakage(items.train, items.test)
    preference_data.refuse_leakage(items.validation, items.test, "validated on")
    return items


def _base_of(config: RewardModelConfig) -> str:
    """The model to start from: that of a run folder, else as named."""
    model = config.policy.model
    exported = Path(model) / ModelReward.exported
    return str(exported) if exported.is_dir() else setup_run.model_folder(model)


def _train(
    config: RewardModelConfig,
    folder: RunFolder,
    base: str,
    items: Parts,
    stop: StopRequest,
    resume: bool,
    allow_change: Sequence[str],
    say: telling.Say,
) -> dict[str, Any]:
    from instructrec.rl.fitting import Surroundings

    start = time.perf_counter()
    checkpoint = take_up(folder.checkpoints) if resume else None
    if resume:
        say(f"resuming after step {update_of(checkpoint)}")
    progress = Progress(config.fit.max_steps, start=update_of(checkpoint), unit="step")
    resumed = None if not resume else update_of(checkpoint) if checkpoint else -1
    recorder = Recorder(
        config,
        folder,
        job_type=config.job_type,
        resumed_update=resumed,
        show=progress.update,
        warn=progress.note,
        say=say,
    )
    with recorder, continuing.resumable(folder):
        around = Surroundings(
            on_step=recorder.on_step,
            on_save=recorder.flush_step,
            checkpoint_dir=folder.checkpoints,
            resume_from=checkpoint,
            allow_change=allow_change,
            should_stop=lambda: stop.requested,
            attended=stop.attended,
        )
        with progress:
            learned = _learner(config)(config, base, items, around)
        recorder.flush_step()
        if learned.result.stopped == "interrupted":
            raise RunInterrupted(
                f"stopped after step {learned.result.steps} of {config.fit.max_steps}, which is "
                f"saved in {folder.checkpoints}. The same command with --resume goes on from there."
            )
        before = update_of(checkpoint)
        before_s = speeds.seconds_until(read_metrics(folder.path), before) if before else 0.0
        seconds = before_s + time.perf_counter() - start
        recorder.summary = _finish(config, folder, items, learned, seconds)
    say(reward_report.in_markdown(learned.report))
    if told := speeds.in_words(recorder.summary):
        say(f"speed: {told}.")
    say(
        f"{learned.result.steps} steps in {format_duration(recorder.summary['train_s'])}; "
        f"the model lies in {folder.path / ModelReward.exported}"
    )
    return recorder.summary


def _learner(config: RewardModelConfig) -> Learn:
    if config.algorithm == "alignment":
        from instructrec.experiments.learn_alignment import learn_alignment

        return learn_alignment
    from instructrec.experiments.learn_preferences import learn_preferences

    return learn_preferences


def _finish(
    config: RewardModelConfig, folder: RunFolder, items: Parts, learned: Learned, seconds: float
) -> dict[str, Any]:
    """Writes the model with its card, the scores of held-out pairs, and the summary."""
    from instructrec.experiments.jsonl import JsonlWriter, write_atomic, write_json

    result = learned.result
    measured = items.facts(config.fit.eval_every)
    file = folder.eval_path(config.task.name, measured["measured_on"], "scores", result.best_step)
    file.unlink(missing_ok=True)
    with JsonlWriter(file) as writer:
        writer.write(*learned.rows)
    with staged(folder.path / ModelReward.exported) as place:
        learned.save(place)
        write_json(place / "reward_report.json", learned.report)
        write_atomic(place / "README.md", _card(config, learned))
    summary = {
        **learned.metrics,
        **measured,
        "updates": result.steps,
        "best_update": result.best_step,
        "best_score": result.best_score,
        "stopped": result.stopped,
        "loss": result.loss,
        "train_s": seconds,
        **speeds.median_speeds(read_metrics(folder.path)),
        "scores_file": str(file.relative_to(folder.path)),
    }
    folder.finish("finished", summary)
    continuing.drop_checkpoints(folder)
    return summary


def _card(config: RewardModelConfig, learned: Learned) -> str:
    """The card beside the model."""
    reward = "alignment" if config.algorithm == "alignment" else "learned"
    use = f"{{use: {reward}, options: {{path: {config.folder}}}}}"
    return "\n\n".join(
        [
            f"# {config.resolved_name}",
            f"A reward model trained by instructrec ({config.algorithm}) from "
            f"`{config.policy.model}` on `{config.task.name}`.",
            "## How to use it",
            f"```yaml\nrewards:\n  {reward}: {use}\n```",
            "## What it has learned",
            reward_report.in_markdown(learned.report),
            "## Limits",
            "It knows the kind of responses that it was trained on. A policy that is trained "
            "against it leaves that kind: watch a reward that it does not see, and the KL.\n",
        ]
    )


def build(parser: ArgumentParser) -> None:
    """Arguments of ``train-reward``."""
    command_line.add_config_file(parser)
    parser.add_class_arguments(RewardModelConfig)
    parser.add_argument(
        "--resume", action="store_true", help="Go on from the run folder's newest checkpoint."
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Delete an existing run folder of this name."
    )
    command_line.add_allow_change(parser, "fit.learning_rate", "the preferences")
    seed_flags.add(parser)


def run(values: Namespace, command: list[str]) -> None:
    """Trains a reward model, or one with each of several seeds."""
    config = command_line.as_dataclass(RewardModelConfig, values)
    seed_flags.check(values, command)
    if values.seeds:
        from instructrec.experiments.reward_seeds import JOB
        from instructrec.experiments.seeds import run_each

        run_each(JOB, config, values.seeds, **seed_flags.options(values, command))
        return
    run_reward_training(
        config,
        resume=values.resume,
        overwrite=values.overwrite,
        allow_change=values.allow_change,
        command=command,
    )


def policy_of(config: RewardModelConfig, base: str) -> Any:
    """The settings by which the base is loaded."""
    return dataclasses.replace(config.policy, model=base)
