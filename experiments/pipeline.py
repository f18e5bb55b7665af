"""``instructrec pipeline``: from demonstrations and preferences to a policy, in one command.

SFT, then in each round samples of the newest policy, preferences between them, a reward model of
all preferences so far, and PPO against it; at the end all policies on held-out instructions, by the
true reward. Each stage is a run folder inside the pipeline's own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from instructrec import processes
from instructrec.errors import ConfigError, RunInterrupted
from instructrec.experiments import command_line, pipeline_tracking, seed_flags, setup_run, telling
from instructrec.experiments import pipeline_stages as stages
from instructrec.experiments.child_runs import is_finished
from instructrec.experiments.locks import held
from instructrec.experiments.pipeline_config import PipelineConfig, refuse_changed
from instructrec.experiments.pipeline_report import Result, Round, write
from instructrec.experiments.pipeline_stages import Pipeline
from instructrec.experiments.progress import format_duration
from instructrec.experiments.runfolder import RunFolder, RunInfo
from instructrec.experiments.setup_run import LoadPolicy
from instructrec.rewards.combine import make_rewards

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def run_pipeline(
    config: PipelineConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: Sequence[str] | None = None,
    load_policy: LoadPolicy = setup_run.load,
    say: telling.Say = telling.say,
) -> Pipeline:
    """Runs all stages that are not finished yet, and reports.

    Args:
        config: Settings.
        resume: Go on with the pipeline in the folder; begin where there is none.
        overwrite: Delete the pipeline in the folder with all its stages.
        command: The command line after the program's name, for the record.
        load_policy: Makes the policies.
        say: Receives lines for people.

    Returns:
        The pipeline; its folder holds ``report.md`` and ``pipeline.json``.

    Raises:
        InstructRecError: A stage cannot be run.
        RunInterrupted: It was stopped, or waits for a mentor; ``resume`` goes on.
        CheckpointError: Another process is at work in the folder.
    """
    processes.refuse_several("a pipeline")
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: choose one.")
    config = config.resolved()
    run = Pipeline(config, list(command or ["pipeline"]), load_policy, say)
    with held(config.folder, "pipeline"):
        _run_all(run, resume and config.folder.exists(), overwrite)
    return run


def _run_all(run: Pipeline, resume: bool, overwrite: bool) -> None:
    """Runs the stages, reports, and sends what was found."""
    config = run.config
    if resume:
        refuse_changed(config)
    _check(run)
    started, was_finished = time.perf_counter(), resume and is_finished(config.folder)
    with _folder(run, resume, overwrite) as folder:
        try:
            result = _run(run)
        except stages.MentorAwaited:
            raise
        except RunInterrupted as error:
            raise RunInterrupted(
                f"the pipeline was stopped ({error}) The same pipeline command with --resume goes "
                "on from there."
            ) from error
        numbers, text = write(result, folder.path)
        folder.finish("finished", {**numbers, "wall_s": time.perf_counter() - started})
    if run.made or not was_finished:
        pipeline_tracking.track(numbers, config, say=run.say)
    run.say(text)
    run.say(f"\n{format_duration(time.perf_counter() - started)}; {folder.path / 'report.md'}")


def _folder(run: Pipeline, resume: bool, overwrite: bool) -> RunFolder:
    config = run.config
    info = RunInfo(
        "compare",
        "pipeline",
        config.resolved_variant,
        config.seed,
        config.policy.model,
        config.task.name,
    )
    return RunFolder.create(
        config.folder,
        info,
        config.to_dict(),
        resume=resume,
        overwrite=overwrite,
        command=["instructrec", *run.command],
    )


def _check(run: Pipeline) -> None:
    """Finds mistakes in tasks and rewards before anything is spent."""
    task = run.config.task
    gold = make_rewards(run.config.gold_reward)
    for split in (task.train_split, task.validation_split, task.test_split):
        gold.check_columns(run.task(split).columns)
    train = run.task(task.train_split)
    run.config.ppo.check_task(len(train), train.columns)


def _run(run: Pipeline) -> Result:
    config = run.config
    test = run.task(config.task.test_split)
    _tell(run, "base", "the untouched model on held-out instructions")
    base = stages.measure(
        run,
        "base",
        config.policy.model,
        test,
        config.gold_reward,
        sampling=config.greedy,
        limit=config.eval.limit,
    )
    _tell(run, "sft", f"{config.sft.demonstrations} demonstrations, {config.sft.max_steps} steps")
    newest = sft = stages.train_sft(run)
    rounds = []
    for number in range(1, config.rounds + 1):
        _tell(run, f"samples-{number}", f"{config.mentor.kind} preferences of round {number}")
        data = stages.prefer(run, number, newest)
        _tell(run, f"reward-model-{number}", f"from {data}")
        reward_model = stages.train_reward(run, number, data, sft)
        _tell(run, f"ppo-{number}", f"{config.ppo.num_updates} updates against that")
        start = stages.start_point(run, number, newest, reward_model)
        newest = stages.train_ppo(run, number, newest, reward_model)
        rounds.append(Round(number, data, reward_model, RunFolder.open(newest), start))
    _tell(
        run,
        f"best-of-{config.rounds}",
        f"the best of {config.best_of} SFT responses by the reward model",
    )
    best_of = stages.measure(
        run,
        f"best-of-{config.rounds}",
        sft,
        test,
        config.both_rewards(rounds[-1].reward_model),
        sampling=config.sampled,
        samples=config.best_of,
        limit=config.eval.limit,
    )
    return Result(config, base, RunFolder.open(sft), rounds, best_of)


def _tell(run: Pipeline, name: str, about: str) -> None:
    done = " (finished already)" if is_finished(run.path / name) else ""
    run.say(f"{name}: {about}{done}")


def build(parser: ArgumentParser) -> None:
    """Arguments of ``pipeline``."""
    command_line.add_config_file(parser)
    parser.add_class_arguments(PipelineConfig)
    parser.add_argument(
        "--resume", action="store_true", help="Go on: stages that are finished are not run again."
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Delete the pipeline of this name with its stages."
    )
    seed_flags.add(parser)


def run(values: Namespace, command: list[str]) -> None:
    """Runs a pipeline, or one with each of several seeds."""
    command_line.refuse_bare(command[0], command[1:])
    config = command_line.as_dataclass(PipelineConfig, values)
    seed_flags.check(values, command)
    if values.seeds:
        from instructrec.experiments.pipeline_seeds import JOB
        from instructrec.experiments.seeds import run_each

        run_each(JOB, config, values.seeds, **seed_flags.options(values, command))
        return
    run_pipeline(config, resume=values.resume, overwrite=values.overwrite, command=command)


if __name__ == "__main__":
    from instructrec.experiments.cli import main

    sys.exit(main(["pipeline", *sys.argv[1:]]))
