"""The stages of the quickstart: each trains or loads one policy and measures it like the others."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

from instructrec.envs.tasks.base import Task, make_task
from instructrec.errors import DataError
from instructrec.experiments import command_line, setup_run, telling
from instructrec.experiments.cli import command_parser
from instructrec.experiments.config import EvalConfig, TrainConfig
from instructrec.experiments.evaluation import Evaluation, evaluate, load_evaluation
from instructrec.experiments.progress import format_duration
from instructrec.experiments.quickstart_config import QuickstartConfig
from instructrec.experiments.quickstart_report import TITLES, Stage
from instructrec.experiments.quickstart_time import left_s
from instructrec.experiments.runfolder import RunFolder, RunInfo
from instructrec.experiments.setup_run import LoadPolicy
from instructrec.experiments.train import run_training
from instructrec.policies.base import Policy
from instructrec.policies.config import Sampling
from instructrec.policies.model_policy import ModelPolicy
from instructrec.rewards.combine import CombinedReward, make_rewards

REWARDS = {"exact_match": 1.0}
"""What every stage is trained on and measured by."""


@dataclass
class Quickstart:
    """A quickstart that has begun."""

    config: QuickstartConfig
    """Settings."""
    path: Path
    """Its folder, in which the stages have theirs."""
    command: list[str] | None = None
    """The command line after the program's name, for the record; None takes this process's."""
    load_policy: LoadPolicy = setup_run.load
    """Makes the policies."""
    say: telling.Say = telling.say
    """Receives lines for people."""
    stages: dict[str, Stage] = field(default_factory=dict)
    """Stages that are measured."""
    expected: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage was guessed to take; empty where nobody did."""
    tracking: str = ""
    """Where the mirror of the last stage is; empty when there is none."""
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        task = self.config.task
        self.test: Task = make_task(task.name, split=task.test_split, **task.options)
        train = make_task(task.name, split=task.train_split, **task.options)
        self.config.ppo.check_task(len(train), train.columns)  # before anything is spent
        self.reward: CombinedReward = make_rewards(REWARDS)

    @property
    def greedy(self) -> Sampling:
        """How the main number is measured."""
        return Sampling(self.config.ppo.response_length, 0.0)

    @property
    def sampled(self) -> Sampling:
        """How the numbers beside it are measured."""
        return Sampling(self.config.ppo.response_length, self.config.ppo.temperature)

    def sampled_path(self, folder: RunFolder) -> Path:
        """File of a finished stage's evaluation with several responses to an instruction."""
        size = self.config.eval
        name = telling.decoding(self.sampled, size.samples, size.sampled_limit, self.config.seed)
        update = int(folder.summary().get("best_update", 0))
        return folder.eval_path(self.config.task.name, self.test.split, name, update)


def open_quickstart(path: Path, say: telling.Say = telling.say) -> Quickstart:
    """Reads a finished quickstart.

    Raises:
        DataError: The folder is no finished quickstart.
    """
    record = RunFolder.open(path).record()
    if record["status"] != "finished" or record["variant"] != "quickstart":
        raise DataError(
            f"{path} is a {record['status']} {record['variant']} run: expected a finished "
            "quickstart."
        )
    arguments = ["--config", str(path / "config.yaml")]
    values = command_line.parse(command_parser("quickstart"), arguments)
    config: QuickstartConfig = command_line.as_dataclass(QuickstartConfig, values)
    return Quickstart(config, path, say=say)


def load_base(run: Quickstart) -> ModelPolicy:
    """Loads the untouched model."""
    model = setup_run.model_folder(run.config.policy.model)
    settings = dataclasses.replace(run.config.policy, model=model)
    return run.load_policy(settings, run.config.seed, run.greedy)


def measure_base(run: Quickstart, policy: ModelPolicy) -> None:
    """Measures the untouched model."""
    config = run.config
    model = setup_run.model_folder(config.policy.model)
    info = RunInfo("eval", "none", "quickstart-base", config.seed, model, config.task.name)
    settings = dataclasses.asdict(config)
    command = None if run.command is None else ["instructrec", *run.command]
    with RunFolder.create(run.path / "base", info, settings, command=command) as folder:
        evaluation = _evaluate(run, policy, folder, 0, run.greedy, 1, config.eval.limit)
        _measure(run, "base", policy, folder, 0, evaluation, 0.0)
        name = evaluation.path.name if evaluation.path else ""
        folder.finish("finished", {**evaluation.metrics(), "eval_file": f"eval/{name}"})


def train_stage(
    run: Quickstart, name: str, settings: TrainConfig, *, overwrite: bool = False
) -> str:
    """Trains and measures one stage.

    Args:
        run: The quickstart.
        name: The stage, a key of ``TITLES``.
        settings: From ``QuickstartConfig.stage``.
        overwrite: Delete a folder of this stage that is there.

    Returns:
        The stage's folder, from which another may start.

    Raises:
        InstructRecError: As ``run_training``.
    """
    config = run.config
    evaluation = EvalConfig(
        limit=config.eval.limit,
        batch_size=config.eval.batch_size,
        max_new_tokens=config.ppo.response_length,
        validation_limit=config.eval.validation_limit,
    )
    outcome = run_training(
        dataclasses.replace(settings, rewards=dict(REWARDS), eval=evaluation),
        overwrite=overwrite,
        command=run.command,
        load_policy=run.load_policy,
        say=lambda text: None,
    )
    run.tracking = outcome.tracking
    summary = outcome.summary
    greedy = load_evaluation(outcome.folder.path / summary["eval_file"])
    update = int(summary["best_update"])
    _measure(run, name, outcome.policy, outcome.folder, update, greedy, summary["train_s"])
    return str(outcome.folder.path)


def _measure(
    run: Quickstart,
    name: str,
    policy: Policy,
    folder: RunFolder,
    update: int,
    greedy: Evaluation,
    train_s: float,
) -> None:
    """Adds the sampled evaluation, keeps the stage, and says how it did."""
    config = run.config
    samples, limit = config.eval.samples, config.eval.sampled_limit
    sampled = _evaluate(run, policy, folder, update, run.sampled, samples, limit)
    run.stages[name] = Stage(name, greedy, sampled, train_s)
    found = greedy.interval("exact_match")
    so_far = time.perf_counter() - run.started
    left = left_s(run.expected, run.stages, so_far)
    run.say(
        f"{TITLES[name]}: exact match {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] on "
        f"{found.n} held-out instructions; {format_duration(so_far)} so far"
        + (f", about {format_duration(left)} left at this pace" if left else "")
    )


def _evaluate(
    run: Quickstart,
    policy: Policy,
    folder: RunFolder,
    update: int,
    sampling: Sampling,
    samples: int,
    limit: int,
) -> Evaluation:
    name = telling.decoding(sampling, samples, limit, run.config.seed)
    return evaluate(
        policy,
        run.test,
        run.reward,
        sampling=sampling,
        samples=samples,
        batch_size=run.config.eval.batch_size,
        limit=limit,
        out=folder.eval_path(run.config.task.name, run.test.split, name, update),
    )
