"""Scripted bounds: what oracle, chance and silence get on the instructions of an evaluation.

They need no model and cost no call of one. A right answer's score, a guess's and that of nothing
say what a policy's number is worth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec import processes
from instructrec.envs.tasks.base import Task, make_task
from instructrec.errors import DataError, InstructRecError
from instructrec.experiments.evaluation import Evaluation, evaluate
from instructrec.experiments.jsonl import Row, plain, read_json, write_json
from instructrec.experiments.playing import Episodes
from instructrec.experiments.robustness import beside
from instructrec.experiments.stats import Interval
from instructrec.policies import scripted
from instructrec.policies.base import Policy
from instructrec.policies.config import Sampling
from instructrec.rewards.combine import CombinedReward, make_rewards

if TYPE_CHECKING:
    from instructrec.experiments.config import TrainConfig
    from instructrec.experiments.setup_run import Materials

SCRIPTED = ("oracle", "random", "empty")
"""Policies without a model: the bounds of every comparison."""
NEED_A_MODEL = ("alignment", "classifier", "embedding_similarity", "learned", "llm_judge")
"""Rewards that ask a model or a judge, which bounds leave alone."""
MOST_S = 30.0
"""Most seconds that a training run gives them at its end."""
_BATCH = 64


class _TooLate(Exception):
    """The time for bounds is over."""


@dataclass(frozen=True)
class Bounds:
    """Scripted policies on the instructions of an evaluation."""

    totals: dict[str, Interval] = field(default_factory=dict)
    """Policy -> its total; without those that could not answer or be scored."""
    notes: list[str] = field(default_factory=list)
    """Why some are left out."""

    def to_row(self) -> Row:
        """Plain values, as they are written."""
        totals = {name: asdict(total) for name, total in self.totals.items()}
        row: Row = plain({"totals": totals, "notes": self.notes})
        return row

    def write(self, rows: Path) -> None:
        """Writes them beside the rows of an evaluation."""
        write_json(beside(rows, "bounds").with_suffix(".json"), self.to_row())


def read_bounds(rows: Path | None) -> dict[str, Any]:
    """Returns ``totals`` and ``notes`` as written beside the rows of an evaluation; else empty."""
    file = None if rows is None else beside(rows, "bounds").with_suffix(".json")
    return read_json(file) if file is not None and file.is_file() else {"totals": {}, "notes": []}


def scripted_policy(name: str, seed: int = 0) -> Policy:
    """Makes one of `SCRIPTED`."""
    if name == "random":
        return scripted.RandomPolicy(seed=seed)
    return scripted.OraclePolicy() if name == "oracle" else scripted.EmptyPolicy()


def measure_bounds(
    task: Task,
    reward: CombinedReward,
    *,
    limit: int | None = None,
    episodes: Episodes,
    seed: int = 0,
    most_s: float | None = None,
) -> Bounds:
    """Measures all scripted policies; what cannot be measured is left out with a note.

    They are scored by rewards made anew: what a reward remembers differs where a run or an
    evaluation was broken off, and it has no use for what a script said. Several processes call
    this alike.

    Args:
        task: The instructions.
        reward: How responses are scored; it stays as it is.
        limit: Most instructions.
        episodes: What an episode is; conversations and tools have no scripted bound.
        seed: Of the random answers.
        most_s: Seconds after which those that are not measured yet are left out; None: never.
    """
    if asking := models_asked(reward.spec):
        return Bounds(notes=[f"no scripted bounds: {', '.join(asking)} would ask a model."])
    if episodes.env in ("chat", "tool"):
        return Bounds(notes=[f"no scripted bounds for episodes of env {episodes.env!r}."])
    start = time.perf_counter()

    def in_time(done: int, total: int) -> None:
        late = most_s is not None and time.perf_counter() - start > most_s
        if done < total and processes.agree_any(late):
            raise _TooLate

    found = Bounds()
    with closing(make_rewards(reward.spec)) as own:
        for i, name in enumerate(SCRIPTED):
            try:
                measured = _answered(name, task, own, limit, episodes, seed, in_time)
            except _TooLate:
                left = ", ".join(SCRIPTED[i:])
                found.notes.append(
                    f"no bounds {left}: scoring took more than {most_s:g} s. `instructrec "
                    "evaluate` has no such limit."
                )
                break
            except InstructRecError as error:
                found.notes.append(f"no bound {name!r}: {error}")
                continue
            if (total := measured.interval()).n:
                found.totals[name] = total
    return found


def measure_final(config: TrainConfig, materials: Materials, rows: Path) -> Row:
    """Measures them beside the final evaluation of a training run, where that is wanted.

    Args:
        config: The run.
        materials: Its tasks and rewards.
        rows: File of the evaluation.

    Returns:
        ``bounds`` for its summary; nothing where they are not wanted.
    """
    from transformers import set_seed

    from instructrec.rl.global_generators import global_states, set_global_states

    if not config.eval.bounds:
        return {}
    states = global_states()
    set_seed(config.seed)  # what rewards draw must not depend on where a run was broken off, either
    try:
        found = measure_bounds(
            materials.test,
            materials.reward,
            limit=config.eval.limit,
            episodes=config.task.episodes,
            most_s=MOST_S,
        )
    finally:
        set_global_states(states)
    processes.on_main(lambda: found.write(rows))
    return {"bounds": found.to_row()}


def in_words(summary: Mapping[str, Any]) -> list[str]:
    """What the summary of a training run says of them, in lines; none where they are not there."""
    found = summary.get("bounds") or {"totals": {}, "notes": []}
    told = ", ".join(f"{name} {total['mean']:.3f}" for name, total in found["totals"].items())
    return [*([f"bounds on the same instructions: {told}"] if told else []), *found["notes"]]


def models_asked(spec: Any) -> list[str]:
    """Names of the rewards of a specification, parts of parts included, that ask a model."""
    found: list[str] = []
    if isinstance(spec, str):
        found = [spec]
    elif isinstance(spec, Mapping):
        found = [str(key) for key in spec if "use" not in spec]
        found += [name for value in spec.values() for name in models_asked(value)]
    elif isinstance(spec, Sequence):
        found = [name for value in spec for name in models_asked(value)]
    return list(dict.fromkeys(name for name in found if name in NEED_A_MODEL))


def answered_like(name: str, other: Evaluation, config: Mapping[str, Any]) -> Evaluation:
    """A scripted policy on the instructions of another evaluation, by the same rewards.

    Args:
        name: One of `SCRIPTED`.
        other: The evaluation; its header says what is measured.
        config: Settings of the run that it belongs to; empty where it belongs to none.

    Raises:
        DataError: The task cannot be made again from the header and the settings.
        InstructRecError: The policy cannot answer, or its answers cannot be scored.
    """
    header = other.header
    task = _task_again(header, config.get("task"))
    settings = dict(header.get("episodes", {}))
    options = settings.pop("env_options", {})
    episodes = Episodes(**settings, options=options)
    limit = len({row["id"] for row in other.rows})
    with closing(make_rewards(header["reward"])) as reward:
        return _answered(name, task, reward, limit, episodes, 0)


def _answered(
    name: str,
    task: Task,
    reward: CombinedReward,
    limit: int | None,
    episodes: Episodes,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    return evaluate(
        scripted_policy(name, seed),
        task,
        reward,
        sampling=Sampling(temperature=0.0),
        batch_size=_BATCH,
        limit=limit,
        episodes=episodes,
        on_progress=on_progress,
    )


def _task_again(header: Mapping[str, Any], trained_on: Any) -> Task:
    """The task of an evaluation, told by its fingerprint."""
    named: list[tuple[str, Mapping[str, Any]]] = [(header["task"], {})]
    if isinstance(trained_on, Mapping) and trained_on.get("name"):
        named.insert(0, (trained_on["name"], trained_on.get("options") or {}))
    for name, options in named:
        try:
            task = make_task(name, split=header["split"], **options)
        except InstructRecError:
            continue
        if task.fingerprint == header.get("fingerprint"):
            return task
    raise DataError(
        f"the instructions of task {header['task']!r} ({header['split']}) cannot be made again, so "
        "that no scripted policy can answer them: expected an evaluation in a run folder, of the "
        "task in its config.yaml. Measure it with `instructrec evaluate oracle --task ...` and "
        "compare that run."
    )
