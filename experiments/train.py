"""Training runs: from a configuration to a run folder.

Also runs by itself, so that a launcher of several processes can start it:
``accelerate launch -m instructrec.experiments.train RECIPE``.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec import processes
from instructrec.envs.tasks.base import Task
from instructrec.errors import RunInterrupted
from instructrec.experiments import (
    continuing,
    data_lock,
    model_card,
    setup_run,
    telling,
    verification,
)
from instructrec.experiments.bounds import measure_final
from instructrec.experiments.classes import class_report
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.corpus import CorpusMetrics
from instructrec.experiments.evaluation import evaluate
from instructrec.experiments.forgetting import forgotten, measure_kept
from instructrec.experiments.interruption import StopRequest
from instructrec.experiments.judge_trial import try_judges
from instructrec.experiments.locks import held
from instructrec.experiments.recording import Recorder, open_record
from instructrec.experiments.runfolder import RunFolder, RunInfo, read_metrics
from instructrec.experiments.setup_run import LoadPolicy, Materials
from instructrec.experiments.speeds import median_speeds, seconds_until
from instructrec.experiments.staging import staged
from instructrec.experiments.supervised_run import prepared, train_supervised
from instructrec.rl.checkpoint import update_of
from instructrec.rl.checkpoint_keeping import take_up
from instructrec.rl.sharing import check_shares, check_stateless

if TYPE_CHECKING:
    from instructrec.policies.model_policy import ModelPolicy
    from instructrec.rl.run_state import ShouldPrune, TrainingResult

TrainPPO = Callable[..., "TrainingResult"]
"""``instructrec.rl.ppo.train_ppo``, or something with its signature."""


@dataclass(frozen=True)
class Outcome:
    """What a training run left behind; of several processes, the main one alone has a summary."""

    folder: RunFolder
    """The run folder."""
    summary: dict[str, Any]
    """Content of its ``summary.json``."""
    policy: ModelPolicy
    """The trained policy."""
    tracking: str
    """Where the run's mirror is, or how to send it; empty when there is none."""


@dataclass(frozen=True)
class _Run:
    """A run that has begun."""

    config: TrainConfig
    folder: RunFolder
    materials: Materials
    policy: ModelPolicy
    start_hash: str
    stop: StopRequest
    say: telling.Say
    should_prune: ShouldPrune
    allow_change: Sequence[str]

    def task_name(self, split: str) -> str:
        """What the task of a split is called in the configuration."""
        other = self.config.eval.task
        return other if split == "test" and other is not None else self.config.task.name


def run_training(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_change: Sequence[str] = (),
    command: Sequence[str] | None = None,
    load_policy: LoadPolicy = setup_run.load,
    train_ppo: TrainPPO | None = None,
    should_prune: ShouldPrune = lambda update, metrics: False,
    say: telling.Say = telling.say,
) -> Outcome:
    """Trains, evaluates on the test split, and writes everything to the run folder.

    A first SIGINT, SIGTERM, SIGHUP or SIGUSR1 ends training after the update or step at hand,
    behind a checkpoint, and the evaluation behind it at once; any other ends the run at once, which
    then goes on from an earlier checkpoint, if there is one. The folder stays readable.

    Args:
        config: The run.
        resume: Continue the folder's newest checkpoint; begin anew where there is no folder yet.
        overwrite: Delete an existing run of this name.
        allow_change: What may differ on resume: keys, ``data``, ``weights`` (start), ``versions``.
        command: The command line after the program's name, for the record.
        load_policy: Makes the policy.
        train_ppo: The learner; None takes that of the algorithm, ``train_ppo`` or ``train_raft``.
        should_prune: Asked after each evaluation of ppo and raft whether to end the run there.
        say: Receives lines for people.

    Raises:
        InstructRecError: Settings, data, model or rewards cannot be used; nothing was overwritten.
        RunInterrupted: The run was stopped and has a checkpoint; ``resume`` continues it.
        KeyboardInterrupt: It was stopped and has none.
        SystemExit: Either of them, in another process than the main one of several.
    """
    continuing.check_flags(resume, overwrite, allow_change)
    if config.supervised is not None:
        processes.refuse_several("supervised training")
    with processes.joined(config.policy.device):
        say = say if processes.is_main() else telling.say_nothing
        # One process looks at the folder, before it is made.
        config, resume = processes.from_main(
            lambda: continuing.continued(config.resolved(), resume, allow_change, say)
        )
        if resume and (found := continuing.finished(config, load_policy, say)) is not None:
            return Outcome(*found, tracking="")
        materials = processes.together(lambda: _materials(config, resume, allow_change))
        with StopRequest() as stop, ExitStack() as locks:
            processes.on_main(lambda: locks.enter_context(held(config.folder, config.algorithm)))
            config, policy, info = _with_policy(config, materials, load_policy)
            folder = RunFolder(config.folder)
            flags = {"resume": resume, "overwrite": overwrite, "allow_change": allow_change}
            begin = partial(continuing.begin, folder, info, config, materials, command=command)
            processes.on_main(partial(begin, **flags))
            with folder if processes.is_main() else nullcontext():
                asks = (policy.weights_hash(), stop, say, should_prune, allow_change)
                run = _Run(config, folder, materials, policy, *asks)
                telling.announce(config, materials, policy, folder.path, say)
                summary, tracking = _train(run, resume, train_ppo)
    return Outcome(folder, summary, policy, tracking)


def _materials(config: TrainConfig, resume: bool, allow_change: Sequence[str]) -> Materials:
    """Tasks and rewards that this run can be trained on, by as many processes as there are."""
    materials = setup_run.make_materials(config)
    if resume and "data" not in allow_change:
        data_lock.refuse_other_data(config.folder, materials.splits)
    if config.supervised is None:
        check_shares(config.ppo)
        for reward in (materials.reward, *(kept.reward for kept in materials.kept)):
            check_stateless(reward)
        config.ppo.check_task(len(materials.train), materials.train.columns)
    return materials


def _with_policy(
    config: TrainConfig, materials: Materials, load_policy: LoadPolicy
) -> tuple[TrainConfig, ModelPolicy, RunInfo]:
    """See ``_policy``; with a micro-batch on which the processes agree."""
    config, policy, info = processes.together(lambda: _policy(config, materials, load_policy))
    if config.supervised is None:
        config = setup_run.with_micro_batch(config, policy)
    return config, policy, info


def _policy(
    config: TrainConfig, materials: Materials, load_policy: LoadPolicy
) -> tuple[TrainConfig, ModelPolicy, RunInfo]:
    """Loads the policy; returns also the settings that depend on its device, and the run's name."""
    from instructrec.policies.labels import writer

    model = setup_run.model_folder(config.policy.model)
    settings = dataclasses.replace(config.policy, model=model)
    more = {"labels": True} if config.has_labels else {}
    policy = load_policy(settings, config.seed, config.eval_sampling, **more)
    if config.supervised is None:
        writer(policy, f"algorithm {config.algorithm}")
    else:
        config, policy = prepared(config, materials, policy)
    setup_run.check_all_prompts(policy, materials, config)
    info = setup_run.run_info(config, model)
    policy.name = setup_run.policy_name(info)
    return config, policy, info


def _train(run: _Run, resume: bool, train_ppo: TrainPPO | None) -> tuple[dict[str, Any], str]:
    """Trains and evaluates; returns the summary and where the mirror is (of the main process)."""
    start = time.perf_counter()
    checkpoint = processes.from_main(lambda: take_up(run.folder.checkpoints) if resume else None)
    record = processes.on_main(
        lambda: open_record(run.config, run.folder, resume, checkpoint, run.say)
    )
    if record is None:
        _measure_start(run)
        trained = _ppo(run, checkpoint, train_ppo)
        with continuing.resumable(run.folder):
            _finish(run, trained, telling.say_nothing)
        return {}, ""
    recorder, progress = record
    with recorder, continuing.resumable(run.folder):
        if checkpoint is None:
            try_judges(run.config, run.materials, run.say, recorder.on_warning)
        _measure_start(run)
        before = update_of(checkpoint)
        before_s = seconds_until(read_metrics(run.folder.path), before) if before else 0.0
        with progress:
            if run.config.supervised is not None:
                trained = _supervised(run, checkpoint, recorder)
            else:
                trained = _ppo(run, checkpoint, train_ppo, recorder)
        trained["train_s"] = before_s + time.perf_counter() - start
        recorder.summary = _finish(run, trained, recorder.on_warning)
    telling.conclude(run.config, run.folder, recorder.summary, recorder.where, run.say)
    return recorder.summary, recorder.where


def _supervised(run: _Run, checkpoint: Path | None, recorder: Recorder) -> dict[str, Any]:
    """Trains on what is given."""
    return train_supervised(
        run.config,
        run.materials,
        run.policy,
        run.folder,
        recorder,
        lambda step: _evaluate(run, "validation", step)[0],
        checkpoint=checkpoint,
        stop=run.stop,
        allow_change=run.allow_change,
    )


def _measure_start(run: _Run) -> None:
    """Evaluates the start where that is asked for; training draws as without."""
    if not run.config.eval.before and not run.materials.kept:
        return
    state = run.policy.generator_state()
    if run.config.eval.before:
        run.say("evaluating the start on the test split ...")
        _evaluate(run, "test", 0)
    for kept in run.materials.kept:
        run.say(f"evaluating the start on {kept.name} ...")
        measure_kept(kept, run.policy, run.config, run.folder, 0)
    run.policy.set_generator_state(state)


def _ppo(
    run: _Run,
    checkpoint: Path | None,
    train_ppo: TrainPPO | None,
    recorder: Recorder | None = None,
) -> dict[str, Any]:
    """Trains; only the main process has a recorder, to which updates are told."""
    config = run.config
    env = setup_run.training_env(config, run.materials)
    done = update_of(checkpoint)

    def on_update(metrics: dict[str, float], rows: list[dict[str, Any]]) -> None:
        nonlocal done
        done = int(metrics["train/update"])
        assert recorder is not None
        recorder.on_update(metrics, rows)

    def validate() -> dict[str, float]:  # the main process alone knows, and needs, the number
        return _evaluate(run, "validation", done + 1)[0]

    with run.stop.attended():
        result = (train_ppo or setup_run.learner(config.algorithm))(
            run.policy,
            env,
            config.ppo,
            seed=config.seed,
            on_update=on_update,
            evaluate=validate if config.ppo.eval_every else None,
            checkpoint_dir=run.folder.checkpoints,
            resume_from=checkpoint,
            should_stop=lambda: run.stop.requested,
            on_alarm=recorder.on_alarm if recorder else lambda alarm: None,
            should_prune=run.should_prune,
            allow_change=run.allow_change,
        )
    if processes.agree_any(run.stop.requested):
        raise RunInterrupted(
            f"stopped after update {result.updates} of {config.ppo.num_updates}, which is saved in "
            f"{run.folder.checkpoints}. The same command with --resume goes on from there."
        )
    return {
        "updates": result.updates,
        "best_update": result.best_update,
        "best_score": result.best_score,
        "stopped": result.stopped,
        **(_seen(run) if recorder else {}),
    }


def _seen(run: _Run) -> dict[str, Any]:
    """What the updates say together: their median speed, and how many used the critic."""
    rows = read_metrics(run.folder.path)
    found: dict[str, Any] = {**median_speeds(rows)}
    if run.config.algorithm == "ppo" and run.config.ppo.advantage == "gae":
        found["critic_updates"] = sum(row.get("ppo/critic_used") == 1 for row in rows)
    return found


def _finish(run: _Run, trained: dict[str, Any], warn: Callable[[str], None]) -> dict[str, Any]:
    """Final evaluation by all processes; export and summary by the main one."""
    start = time.perf_counter()
    policy_hash, best = run.policy.weights_hash(), trained["best_update"]

    def check() -> None:
        chosen = _eval_path(run, "validation", best)
        verification.check_evaluated(policy_hash, chosen, f"those of number {best}, the best one")
        if message := verification.unchanged(run.start_hash, policy_hash, trained):
            warn(message)

    processes.on_main(check)
    run.say("evaluating on the test split ...")
    metrics, file = _evaluate(run, "test", best)
    summary = {
        **metrics,
        **trained,
        **forgotten(run.materials.kept, run.policy, run.config, run.folder, best),
        **class_report(run.policy, file),
        "eval_s": time.perf_counter() - start,
        "eval_file": str(file.relative_to(run.folder.path)),
        "policy_hash": policy_hash,
        **measure_final(run.config, run.materials, file),
    }

    def conclude() -> None:
        verification.check_evaluated(policy_hash, file, "the trained ones")
        if run.config.output.export_policy:
            with staged(run.folder.policy) as folder:
                run.policy.save(folder)
        run.folder.finish("finished", summary)
        if run.config.output.export_policy:
            model_card.describe(
                run.folder,
                takes_system=run.policy.takes_system,
                labels=getattr(run.policy, "asked_by", ""),
                warn=warn,
            )
        if run.config.supervised is not None:
            continuing.drop_checkpoints(run.folder)

    processes.on_main(conclude)  # the others leave when all is written
    return summary


def _task_and_limit(run: _Run, split: str) -> tuple[Task, int | None]:
    if split == "test":
        return run.materials.test, run.config.eval.limit
    return run.materials.validation, run.config.eval.validation_limit


def _eval_path(run: _Run, split: str, update: int) -> Path:
    config, (task, limit) = run.config, _task_and_limit(run, split)
    name = telling.decoding(
        config.eval_sampling, config.eval.samples, limit, config.seed, config.task.episodes
    )
    return run.folder.eval_path(run.task_name(split), task.split, name, update)


def _evaluate(run: _Run, split: str, update: int) -> tuple[dict[str, float], Path]:
    config = run.config.eval
    task, limit = _task_and_limit(run, split)
    file = _eval_path(run, split, update)
    evaluation = evaluate(
        run.policy,
        task,
        run.materials.reward,
        sampling=run.config.eval_sampling,
        samples=config.samples,
        batch_size=config.batch_size,
        limit=limit,
        episodes=run.config.task.episodes,
        corpus=CorpusMetrics(
            config.corpus_metrics if split == "test" else (), config.corpus_references
        ),
        out=file,
    )
    return evaluation.metrics(), file


if __name__ == "__main__":
    from instructrec.experiments.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
