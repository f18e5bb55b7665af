"""The stages of a pipeline: each makes its run folder once, or finds it finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from instructrec.envs.tasks.base import Instruction, Task, make_task
from instructrec.envs.tasks.partition import stable_hash
from instructrec.errors import DataError, RunInterrupted
from instructrec.experiments import reward_run, setup_run, telling
from instructrec.experiments.child_runs import is_finished
from instructrec.experiments.evaluation import Evaluation, evaluate, load_evaluation
from instructrec.experiments.jsonl import Row, dump_line, read_json, read_rows, write_atomic
from instructrec.experiments.overoptimisation import Point, choice_of, overoptimised, points_of
from instructrec.experiments.pipeline_config import GOLD, PROXY, PipelineConfig
from instructrec.experiments.preference_pairs import Mentor, pairs_of_rows
from instructrec.experiments.runfolder import RunFolder, RunInfo, read_metrics
from instructrec.experiments.setup_run import LoadPolicy
from instructrec.experiments.train import run_training
from instructrec.policies.config import Sampling
from instructrec.rewards.combine import make_rewards


class MentorAwaited(RunInterrupted):
    """A person has to say what is better before the pipeline can go on."""


@dataclass
class Pipeline:
    """A pipeline that has begun."""

    config: PipelineConfig
    """Settings."""
    command: list[str]
    """The command line after the program's name, for the record."""
    load_policy: LoadPolicy = setup_run.load
    """Makes the policies."""
    say: telling.Say = telling.say
    """Receives lines for people."""
    made: list[str] = field(default_factory=list)
    """Stages that were run by this call, and not found finished."""

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.config.folder

    def task(self, split: str) -> Task:
        """The instructions of a split."""
        return make_task(self.config.task.name, split=split, **self.config.task.options)


class Window:
    """A part of a task, as a task.

    Args:
        task: The whole.
        start: Its first item; behind the end it goes on from the beginning.
        size: How many, at most all.
    """

    def __init__(self, task: Task, start: int, size: int) -> None:
        self._task, self._start, self._size = task, start, min(size, len(task))
        self.name, self.split, self.columns = task.name, task.split, task.columns

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Instruction:
        if not 0 <= index < self._size:
            raise IndexError(index)
        return self._task[(self._start + index) % len(self._task)]

    @property
    def fingerprint(self) -> str:
        """That of the whole, and which part."""
        return f"{self._task.fingerprint}[{self._start}:{self._start + self._size}]"


def measure(
    run: Pipeline,
    name: str,
    model: str,
    task: Task,
    rewards: dict[str, Any],
    *,
    sampling: Sampling,
    samples: int = 1,
    limit: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Lets a policy answer, in a run folder of job type ``eval``; a finished one is read.

    Args:
        run: The pipeline.
        name: The folder's name.
        model: Who answers: a model, or the run folder of one.
        task: The instructions.
        rewards: What scores the responses.
        sampling: How they are drawn.
        samples: Responses to each instruction.
        limit: Most instructions.
        seed: Added to the pipeline's own.
    """
    config, path = run.config, run.path / name
    if is_finished(path):
        return load_evaluation(path / RunFolder.open(path).summary()["eval_file"])
    place = setup_run.model_folder(model)
    parent = str(Path(place).parent) if Path(place).name == "policy" else None
    seed = config.seed + seed
    variant = f"{config.resolved_variant}-{name}"
    info = RunInfo("eval", "none", variant, config.seed, model, config.task.name, parent)
    settings = config.to_dict()
    command = ["instructrec", *run.command]
    run.made.append(name)
    with RunFolder.create(path, info, settings, resume=path.exists(), command=command) as folder:
        policy = run.load_policy(replace(config.policy, model=place), seed, sampling)
        evaluation = evaluate(
            policy,
            task,
            make_rewards(rewards),
            sampling=sampling,
            samples=samples,
            batch_size=config.samples.batch_size if samples > 1 else config.eval.batch_size,
            limit=limit,
            out=folder.eval_path(config.task.name, task.split, telling.decoding(sampling), 0),
        )
        file = evaluation.path
        found = {"eval_file": f"eval/{file.name}"} if file is not None else {}
        folder.finish("finished", {**evaluation.metrics(), **found, "best_update": 0})
    return evaluation


def train_sft(run: Pipeline) -> str:
    """Imitates the demonstrations; returns its folder."""
    config = run.config.sft_run()
    if not is_finished(config.folder):
        run.made.append("sft")
        run_training(
            config,
            resume=config.folder.exists(),
            command=run.command,
            load_policy=run.load_policy,
            say=telling.say_nothing,
        )
    return str(config.folder)


# Preferences --------------------------------------------------------------------------------------


def prefer(run: Pipeline, number: int, policy: str) -> Path:
    """Samples responses and gets preferences between them.

    Args:
        run: The pipeline.
        number: The round, from 1.
        policy: Who answers.

    Returns:
        File with the preferences of this round and those before.

    Raises:
        MentorAwaited: A person has to say what is better; the message says how.
        DataError: No two responses have different scores.
    """
    config = run.config
    size = config.samples.limit
    rows = measure(
        run,
        f"samples-{number}",
        policy,
        Window(run.task(config.task.train_split), (number - 1) * size, size),
        config.gold_reward,
        sampling=config.sampled,
        samples=config.samples.n,
        seed=number,
    )
    own = run.path / "preferences" / f"round-{number}.jsonl"
    if not own.exists():
        human = config.mentor.kind == "human"
        found = _asked(run, number, rows) if human else _simulated(config, number, rows)
        named = [{**row, "id": f"round{number}:{i}:{row['id']}"} for i, row in enumerate(found)]
        _write(own, named)
    together = run.path / "preferences" / f"up-to-{number}.jsonl"
    files = [own.with_name(f"round-{i}.jsonl") for i in range(1, number + 1)]
    _write(together, [row for file in files for row in read_rows(file)])
    return together


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, b"".join(map(dump_line, rows)).decode("utf-8"))


def _simulated(config: PipelineConfig, number: int, samples: Evaluation) -> list[Row]:
    """The gold reward prefers, with mistakes."""
    mentor = config.mentor
    pairs = pairs_of_rows(samples.rows, select=mentor.select, min_margin=mentor.min_margin)
    if not pairs:
        raise DataError(
            f"round {number}: no two responses to an instruction have gold scores that differ by "
            f"{mentor.min_margin:g} or more; expected some to prefer. The samples are in "
            f"{samples.path}. Take a gold reward with more levels, or raise samples.n."
        )
    seed = config.seed + number
    drawn = sorted(pairs, key=lambda pair: stable_hash("pipeline", seed, pair.id))
    judged = Mentor(mentor.noise, seed=seed).judge(drawn[: mentor.max_pairs])
    # What the mentor saw stays hidden from what learns: margins would give the gold reward away.
    hidden = ("margin", "chosen_score", "rejected_score")
    return [{k: v for k, v in pair.row().items() if k not in hidden} for pair in judged]


def _asked(run: Pipeline, number: int, samples: Evaluation) -> list[Row]:
    """What a person has said so far, once that is enough."""
    labels = run.path / f"labels-{number}"
    found = labels / "preferences.jsonl"
    rows = read_rows(found) if found.exists() else []
    summary = read_json(labels / "summary.json") if (labels / "summary.json").exists() else {}
    judged = max(summary.get("annotators", {}).values(), default=0)
    wanted = run.config.mentor.wanted
    enough = len(rows) >= wanted if wanted else bool(rows) and judged >= summary["items"]
    if enough:
        return rows
    have = f"{len(rows)} of {wanted} preferences" if wanted else f"{judged} judgments"
    raise MentorAwaited(
        f"round {number} waits for a mentor ({have} so far). Judge the responses by\n"
        f"  instructrec label {samples.path} --out {labels}\n"
        "and give the same pipeline command with --resume."
    )


# Learning -----------------------------------------------------------------------------------------


def train_reward(run: Pipeline, number: int, data: Path, sft: str) -> Path:
    """Trains the reward model of a round; returns its run folder."""
    config = run.config.reward_run(number, data, sft)
    if not is_finished(config.folder):
        run.made.append(f"reward-model-{number}")
        reward_run.run_reward_training(
            config,
            resume=config.folder.exists(),
            command=run.command,
            say=telling.say_nothing,
        )
    return config.folder


def start_point(run: Pipeline, number: int, policy: str, reward_model: Path) -> Point:
    """Where PPO of a round starts: proxy and gold on the validation instructions."""
    config = run.config
    found = measure(
        run,
        f"start-{number}",
        policy,
        run.task(config.task.validation_split),
        config.both_rewards(reward_model),
        sampling=config.greedy,
        limit=config.eval.validation_limit,
    )
    return Point(0, 0.0, found.interval(PROXY).mean, found.interval(GOLD).mean)


def train_ppo(run: Pipeline, number: int, policy: str, reward_model: Path) -> str:
    """PPO of a round against its reward model; gold is measured and has no weight."""
    config, choice = run.config.ppo_run(number, policy, reward_model), run.config.choice
    start = start_point(run, number, policy, reward_model)
    if is_finished(config.folder):
        return str(config.folder)
    run.made.append(f"ppo-{number}")
    learn: Callable[..., Any] = partial(
        setup_run.learner("ppo"), best_metric=choice_of(choice.by, choice.kl_budget)
    )

    def parted(update: int, metrics: dict[str, float]) -> bool:
        before = [row for row in read_metrics(config.folder) if row["train/update"] < update]
        points = [start, *points_of([*before, metrics])]
        return (
            choice.stop_at_overoptimisation and overoptimised(points, choice.patience) is not None
        )

    run_training(
        config,
        resume=config.folder.exists(),
        command=run.command,
        load_policy=run.load_policy,
        train_ppo=learn,
        should_prune=parted,
        say=telling.say_nothing,
    )
    return str(config.folder)
