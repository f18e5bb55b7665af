"""Evaluation: a policy plays held-out instructions, each episode becomes one row on the disk.

An episode is one response, or several tries where the environment asks again (`Episodes`). Rows
are written batch by batch, so that an interrupted evaluation continues where it stopped. A
response without a score (the reward does not apply, or failed) is left out of the means and
counted; it is never a zero.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from instructrec import processes
from instructrec.crash_points import crash_point
from instructrec.envs.tasks.base import Instruction, Task
from instructrec.errors import ConfigError, DataError
from instructrec.experiments.best_of import expected_best, pass_at_k, sizes_up_to
from instructrec.experiments.corpus import NO_CORPUS_METRICS, CorpusMetrics
from instructrec.experiments.groups import interval_of, task_metrics, values_of
from instructrec.experiments.jsonl import JsonlWriter, Row, plain, read_json, read_rows
from instructrec.experiments.playing import SINGLE_ANSWERS, Episodes, play_rows, take_up
from instructrec.experiments.resumed_rows import kept_rows, own_rows
from instructrec.experiments.stats import Interval, mean_interval
from instructrec.policies.base import Policy
from instructrec.policies.config import Sampling
from instructrec.rewards.combine import CombinedReward
from instructrec.rewards.style import refusal

FORMAT_VERSION = 1
_FULL_MARKS = 1.0 - 1e-9


@dataclass(frozen=True)
class Evaluation:
    """The rows of one evaluation and what is computed from them.

    A row holds ``id, sample, prompt, response, reference, parts, total, status, stop_reason,
    response_len, logprob, item, family``, and ``level`` where the task has some; ``total`` and a
    part without a score are None. Of an episode that may have several turns ``response``,
    ``parts``, ``status`` and ``stop_reason`` are those of the last answer, ``total`` is the return,
    ``response_len`` and ``logprob`` are over all answers; beside them stand ``num_turns``,
    ``unfinished`` (it outgrew a budget or the policy's window), ``num_calls`` and ``num_errors`` of
    tools where there are some, and, of two or more turns, ``turns``: a list of ``response, reward,
    stop_reason, response_len`` and ``message``, what was said to the answer.
    """

    rows: list[Row]
    """One row per response: instruction by instruction, sample by sample."""
    header: Row = field(default_factory=dict)
    """What was evaluated and how: task, split, fingerprint, policy, reward, sampling, samples."""
    seconds: float = 0.0
    """Wall time of this call; rows that lay on the disk already cost nothing."""
    path: Path | None = None
    """File of the rows, if they were written."""
    corpus: Mapping[str, Interval] = field(default_factory=dict)
    """Corpus metrics by name, each with its interval; empty where none was asked for."""

    @property
    def parts(self) -> list[str]:
        """Names of the reward's components."""
        return list(dict.fromkeys(name for row in self.rows for name in row["parts"]))

    @property
    def clusters(self) -> list[str]:
        """Label of each row's cluster: its item within the family, or its instruction."""
        return [cluster_of(row) for row in self.rows]

    def scores(self, part: str = "total") -> np.ndarray:
        """Returns the scores of a part, or of the total, by row: (rows,) float64, NaN for none."""
        values = [row["total"] if part == "total" else row["parts"].get(part) for row in self.rows]
        return np.array([math.nan if v is None else v for v in values], dtype=np.float64)

    def interval(self, part: str = "total", family: str | None = None) -> Interval:
        """Mean score with its 95 % interval, clustered by item, over the rows that have a score.

        Args:
            part: Name of a component, or ``total``.
            family: Only rows of this family of instructions.
        """
        return interval_of(self.rows, self.scores(part), self.clusters, "family", family)

    def families(self) -> dict[str, dict[str, Interval]]:
        """Returns family -> part (and ``total``) -> interval; empty without families."""
        return {
            name: {part: self.interval(part, name) for part in [*self.parts, "total"]}
            for name in values_of(self.rows, "family")
        }

    def metrics(self) -> dict[str, float]:
        """Returns the ``eval/…`` metrics; a number that nothing was measured for is absent."""
        metrics: dict[str, float] = {}
        for part in [*self.parts, "total"]:
            interval = self.interval(part)
            numbers = {"mean": interval.mean, "ci_low": interval.low, "ci_high": interval.high}
            metrics |= {f"eval/{part}/{k}": v for k, v in numbers.items() if math.isfinite(v)}
        for part in self.parts:
            statuses = [row["status"].get(part) for row in self.rows]
            metrics[f"eval/{part}/na_frac"] = _share(s == "not_applicable" for s in statuses)
            metrics[f"eval/{part}/error_frac"] = _share(
                s not in ("scored", "not_applicable") for s in statuses
            )
        lengths = [row["response_len"] for row in self.rows if row["response_len"] is not None]
        if lengths:
            metrics["eval/response_len"] = float(np.mean(lengths))
        reasons = [row["stop_reason"] for row in self.rows if row["stop_reason"] is not None]
        if reasons:
            metrics["eval/truncated_frac"] = _share(reason == "length" for reason in reasons)
        refused = refusal([row["response"] for row in self.rows])
        metrics["eval/refusal_frac"] = _share(found > 0 for found in refused)
        for name, value in self.corpus.items():
            numbers = {"score": value.mean, "ci_low": value.low, "ci_high": value.high}
            metrics |= {
                f"eval/corpus/{name}/{k}": v for k, v in numbers.items() if math.isfinite(v)
            }
        metrics |= task_metrics(self)
        return (
            metrics | self._several_turns() | self._entropy() | self._pass_at_k() | self._best_of()
        )

    @property
    def samples_scored(self) -> int:
        """Responses with a total that every instruction has at least; without any it is left out.

        It is what ``pass_at_k`` and ``best_of`` can go up to.
        """
        totals = self._totals()
        return min((len(scores) for scores, _ in totals.values()), default=0)

    def best_of(self, k: int) -> Interval:
        """Mean over instructions of the best total among k responses, with its 95 % interval.

        It needs the reward at test time, to tell which response is the best: an upper bound for
        reranking k responses, not what the policy gets. Clustered by item.

        Args:
            k: Responses to choose from, at most ``samples_scored``. Where an instruction has more,
                the mean of the maximum over all ways to take k of them.
        """
        totals = self._totals().values()
        best = [expected_best(scores, k) for scores, _ in totals]
        return mean_interval(best, [cluster for _, cluster in totals])

    def _totals(self) -> dict[str, tuple[list[float], str]]:
        """Instruction -> its totals and its cluster; only instructions that have a total."""
        totals: dict[str, tuple[list[float], str]] = {}
        for row in self.rows:
            if row["total"] is not None:
                totals.setdefault(row["id"], ([], cluster_of(row)))[0].append(row["total"])
        return totals

    def _best_of(self) -> dict[str, float]:
        return {f"eval/best_of_{k}": self.best_of(k).mean for k in sizes_up_to(self.samples_scored)}

    def _several_turns(self) -> dict[str, float]:
        """What several tries are worth; empty for episodes with a single answer."""
        rows = [row for row in self.rows if "num_turns" in row]
        if not rows:
            return {}
        metrics = {
            "eval/turns": float(np.mean([row["num_turns"] for row in rows])),
            "eval/unfinished_frac": _share(row["unfinished"] for row in rows),
        }
        for name in ("num_calls", "num_errors"):
            if name in rows[0]:
                metrics[f"eval/{name}"] = float(np.mean([row[name] for row in rows]))
        scored = [row for row in rows if row["total"] is not None]
        first = [row["turns"][0]["reward"] if "turns" in row else row["total"] for row in scored]
        return metrics | ({"eval/first_turn": float(np.mean(first))} if first else {})

    def _entropy(self) -> dict[str, float]:
        if self.header.get("sampling", {}).get("temperature", 1.0) == 0:
            return {}
        measured = [row for row in self.rows if row.get("logprob") is not None]
        tokens = sum(row["response_len"] for row in measured)
        if not tokens:
            return {}
        return {"eval/entropy": -sum(row["logprob"] for row in measured) / tokens}

    def pass_at(self, k: int) -> Interval:
        """Chance that one of k responses at least gets full marks, with its 95 % interval.

        Clustered by item, like `best_of`.

        Args:
            k: Responses that one may try, at most ``samples_scored``.
        """
        clusters = [cluster for _, cluster in self._totals().values()]
        return mean_interval(self._chances(k), clusters)

    def _chances(self, k: int) -> np.ndarray:
        """``pass_at_k`` of each instruction that has a total, in the order of `_totals`."""
        passes = self._passes().values()
        return pass_at_k([sum(p) for p in passes], [len(p) for p in passes], k)

    def _passes(self) -> dict[str, list[bool]]:
        """Instruction -> which of its scored responses got full marks."""
        weights = self.header.get("weights", {})
        passes: dict[str, list[bool]] = {}
        for row in self.rows:
            if row["total"] is None:
                continue
            counted = [
                score
                for name, score in row["parts"].items()
                if score is not None and weights.get(name, 0.0 if "." in name else 1.0) > 0
            ]
            passes.setdefault(row["id"], []).append(min(counted, default=0.0) >= _FULL_MARKS)
        return passes

    def _pass_at_k(self) -> dict[str, float]:
        if self.samples_scored < 2:
            return {}
        sizes = [1, *sizes_up_to(self.samples_scored)]
        return {f"eval/pass_at_{k}": float(self._chances(k).mean()) for k in sizes}


def evaluate(
    policy: Policy,
    task: Task,
    reward: CombinedReward,
    *,
    sampling: Sampling,
    samples: int = 1,
    batch_size: int = 256,
    limit: int | None = None,
    episodes: Episodes = SINGLE_ANSWERS,
    corpus: CorpusMetrics = NO_CORPUS_METRICS,
    out: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Lets a policy play the instructions of a task and scores its responses.

    Several processes call this alike and share the work; the main one writes, all get all rows.

    Args:
        policy: Who answers.
        task: The instructions, taken in order from the first.
        reward: How responses are scored.
        sampling: How responses are drawn.
        samples: Responses (episodes) per instruction.
        batch_size: Responses that a process asks for at once.
        limit: Most instructions; None takes all.
        episodes: What an episode is; a single response by default.
        corpus: Metrics of all responses together; no part of the rows, so they may change.
        out: JSONL file for the rows; what was evaluated goes to the same name with ``.json``. Rows
            that it holds already are kept, and the others drawn as if it had never broken off.
        on_progress: Called after each batch with the rows that are done and the rows in all.

    Raises:
        ConfigError: ``samples``, ``batch_size`` or ``limit`` is below 1.
        DataError: The task is empty, lacks a column, or ``out`` holds another evaluation's rows.
        PolicyError: The policy gave too few or too many responses, or cannot take several turns.
    """
    start = time.perf_counter()
    _require_positive(samples=samples, batch_size=batch_size, limit=limit)
    instructions = _instructions(task, limit)
    reward.check_columns([*task.columns, *episodes.told])
    references = corpus.read(task, instructions)
    places = [(i, s) for i in range(len(instructions)) for s in range(samples)]
    slots = [(instructions[i], s) for i, s in places]

    def begin() -> tuple[Row, list[Row]]:
        draws = {"sampling": asdict(sampling), "samples": samples, "rows": len(slots)}
        header = _header(policy, task, reward, draws, episodes, with_hash=out is not None)
        return header, [] if out is None else kept_rows(out, header, slots, batch_size)

    header, rows = processes.from_main(begin)
    take_up(policy, task, instructions, own_rows(rows, batch_size), sampling)
    play = partial(play_rows, policy, task, reward, sampling, episodes)
    for new in _batches(places[len(rows) :], batch_size, play, out):
        rows += new
        if on_progress is not None:
            on_progress(len(rows), len(slots))
    clusters = [*map(cluster_of, rows)]
    measured = processes.from_main(lambda: corpus.intervals(rows, clusters, references))
    return Evaluation(rows, header, time.perf_counter() - start, out, measured)


def load_evaluation(path: str | Path) -> Evaluation:
    """Reads an evaluation back from its JSONL file.

    Raises:
        DataError: The file is missing, malformed or none of an evaluation, or not complete.
        CheckpointError: Its header cannot be read.
    """
    path = Path(path)
    rows, side = read_rows(path), path.with_suffix(".json")
    header = read_json(side) if side.is_file() else {}
    if "rows" not in header:
        raise DataError(
            f"{path} is no evaluation: expected its settings in {side.name} beside it, as "
            "`instructrec evaluate` writes them."
        )
    if len(rows) != header.get("rows"):
        raise DataError(
            f"{path} holds {len(rows)} of {header.get('rows')} rows: the evaluation was "
            "interrupted; run it again and it continues."
        )
    return Evaluation(rows, header, 0.0, path)


def cluster_of(row: Mapping[str, Any]) -> str:
    """Returns the label of the cluster of an evaluation row: family and item, or the id."""
    if row.get("item") is None:
        return f"id:{row['id']}"
    return f"{row.get('family') or ''}:{row['item']}"


def _require_positive(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value}: expected at least 1.")


def _instructions(task: Task, limit: int | None) -> list[Instruction]:
    """The first instructions of a task; raises DataError when it has none."""
    if not len(task):
        raise DataError(
            f"split {task.split!r} of task {task.name!r} is empty: nothing to evaluate."
        )
    return [task[i] for i in range(min(len(task), limit or len(task)))]


def _batches(
    places: Sequence[tuple[int, int]],
    batch_size: int,
    play: Callable[[Sequence[tuple[int, int]]], list[Row]],
    out: Path | None,
) -> Iterator[list[Row]]:
    """Plays a batch in each process at a time; the main one writes the rows of all."""
    writer = None if out is None else processes.on_main(lambda: JsonlWriter(out))
    size = batch_size * processes.world_size()
    with writer or nullcontext():
        for first in range(0, len(places), size):
            own = processes.own_share(places[first : first + size])
            work: Callable[[], list[Row]] = partial(play, own) if own else list
            played = processes.together(work)
            rows = [row for share in processes.gather(played) for row in share]
            processes.on_main(partial(_write, writer, rows))
            yield rows


def _write(writer: JsonlWriter | None, rows: list[Row]) -> None:
    crash_point("evaluation.answered")
    if writer is not None:
        writer.write(*rows)


def _header(
    policy: Policy,
    task: Task,
    reward: CombinedReward,
    draws: Row,
    episodes: Episodes,
    *,
    with_hash: bool,
) -> Row:
    weights_hash = getattr(policy, "weights_hash", None)
    return plain(
        {
            "format_version": FORMAT_VERSION,
            "task": task.name,
            "split": task.split,
            "fingerprint": task.fingerprint,
            "policy": policy.name,
            "weights_hash": weights_hash() if with_hash and weights_hash else None,
            "reward": reward.spec,
            "weights": reward.weights,
            **draws,
            "episodes": episodes.header(),
        }
    )


def _share(flags: Any) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else 0.0
