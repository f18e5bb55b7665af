"""What a benchmark run has to do, what it reports, and the gate that it has to pass.

Every side of a comparison runs in a process of its own, some of them with other libraries, so what
they exchange are JSON files, and this module needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.06}
"""Largest mean difference (nats per token) to the log-probs of a plain float32 model."""
MOST_DRIFT = {"float32": 1e-4, "bfloat16": 0.02}
"""Largest mean difference between the sampler's log-probs and the trainer's (nats per token)."""
EQUAL, LOG_NORMAL = "equal", "log-normal"
"""How long the responses of a rollout are (see ``target_lengths``)."""
_MEAN, _SPREAD = 0.4, 0.6
"""Of log-normal lengths: mean, as a share of the longest; standard deviation of the logarithm."""


class GateError(Exception):
    """A side does not do the work that is compared, so its times mean nothing."""


@dataclass(frozen=True)
class Workload:
    """One side's share of a comparison."""

    model: str
    """Hugging Face folder."""
    prompts: str
    """JSON file with the prompts and the frozen responses (see ``Prompts``)."""
    episodes: int
    """Episodes of an update; each prompt gives ``generations`` of them."""
    response_length: int
    """Tokens of every response, or of the longest where ``lengths`` differ."""
    prompt_length: int | None = None
    """Tokens of every prompt, chat template included; None leaves the task's own lengths."""
    lengths: str = EQUAL
    """``equal``, or ``log-normal``: each prompt has a length at which its responses end, never
    earlier, and which is the same on every side."""
    generations: int = 1
    """Responses to one prompt."""
    epochs: int = 4
    """Passes over the rollout in an update; 0 decodes and learns nothing."""
    mini_batches: int = 1
    """Optimizer steps in a pass."""
    micro_batch: int | None = None
    """Episodes in one forward/backward at most; None takes the whole minibatch."""
    learning_rate: float = 1e-6
    """Learning rate, small enough that the policy stays what it is."""
    kl_coef: float = 0.05
    """Weight of the KL to the reference; 0 needs no reference."""
    dtype: str = "bfloat16"
    """``float32`` or ``bfloat16``."""
    train: str = "full"
    """``full``, ``last_layers`` (the last half) or ``lora`` (rank 16, all linear layers)."""
    critic: str = "shared"
    """Ours: ``shared`` or ``separate``. TRL 1.12 always has a separate one, GRPO none."""
    device: str = "cpu"
    """``cpu`` or ``cuda``."""
    threads: int | None = None
    """Threads of torch; None leaves its choice."""
    warmup: int = 1
    """Updates before the clock counts."""
    updates: int = 1
    """Updates that are timed."""
    seed: int = 0
    """Seed of sampling and shuffles."""

    @property
    def micro_batch_size(self) -> int:
        """Episodes in one forward/backward."""
        minibatch = self.episodes // self.mini_batches
        return min(self.micro_batch or minibatch, minibatch)

    @property
    def steps(self) -> int:
        """Optimizer steps of an update."""
        return self.epochs * self.mini_batches


@dataclass(frozen=True)
class Prompts:
    """Prompts as text and as tokens, and responses with the log-probs that they should get."""

    texts: list[str]
    """Instructions, as a user writes them."""
    ids: list[list[int]]
    """The same behind the chat template."""
    rendered: list[str]
    """What these tokens say, markers included; a tokenizer makes the same ids of it."""
    responses: list[list[int]]
    """A frozen response to each of the first prompts, all of one length."""
    logprobs: list[list[float]]
    """Log-probs of their tokens under a plain forward pass in float32 at temperature 1 (nats)."""

    @staticmethod
    def read(path: str | Path) -> Prompts:
        """Reads the file that ``benchmarks.prepare`` wrote."""
        return Prompts(**json.loads(Path(path).read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """Writes the file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass
class Update:
    """What one update did, and how long it took."""

    seconds: float
    """Wall time from the end of the update before to the end of this one."""
    phases: dict[str, float]
    """Seconds of its parts; ``other`` is what none of them covers."""
    response_lengths: list[int]
    """Tokens of each response, as the loss sees them, in the order of the prompts' tokens."""
    prompts_hash: str
    """``prompts_hash`` of the prompts that were answered."""
    optimizer_steps: int
    """Calls of the optimizer."""
    loss: float
    """The loss, or a sum of its parts; what counts is that it is a number."""
    drift: float | None = None
    """Mean absolute difference between the sampler's log-probs and the trainer's before its first
    step (nats per token); None where the side does not tell."""


@dataclass
class Report:
    """What a side's process found."""

    side: str
    """Name of the side."""
    logprob_error: float
    """Mean absolute difference of its log-probs to the frozen ones (nats per token)."""
    updates: list[Update] = field(default_factory=list)
    """All updates, warm-up included."""
    peak_rss_bytes: int = 0
    """Largest resident memory of the process."""
    peak_cuda_bytes: int | None = None
    """Largest memory that torch allocated on the GPU."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the libraries."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings that were in force: batch, epochs, minibatches, precision of the weights."""
    extra: dict[str, float] = field(default_factory=dict)
    """Other numbers, such as the limit of each phase."""

    @staticmethod
    def read(path: Path) -> Report:
        """Reads a report."""
        data = json.loads(path.read_text(encoding="utf-8"))
        data["updates"] = [Update(**update) for update in data["updates"]]
        return Report(**data)

    def write(self, path: Path) -> None:
        """Writes a report."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def prompts_hash(prompt_ids: Sequence[Sequence[int]]) -> str:
    """A hash of the prompts of a rollout that does not depend on their order."""
    text = json.dumps(sorted(list(map(int, ids)) for ids in prompt_ids))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def asked_prompts(workload: Workload, prompts: Prompts) -> list[list[int]]:
    """Token ids of a rollout's prompts: the first ones, each ``generations`` times."""
    chosen = prompts.ids[: workload.episodes // workload.generations]
    return [ids for ids in chosen for _ in range(workload.generations)]


def target_lengths(workload: Workload, prompts: Prompts) -> dict[tuple[int, ...], int]:
    """Tokens that the responses to each prompt have to have, by the prompt's tokens.

    Log-normal lengths have a mean of about 0.4 of the longest, which is ``response_length``.
    """
    chosen = [tuple(ids) for ids in prompts.ids[: workload.episodes // workload.generations]]
    longest = workload.response_length
    if workload.lengths == EQUAL:
        return dict.fromkeys(chosen, longest)
    if workload.lengths != LOG_NORMAL:
        raise ValueError(f"lengths {workload.lengths!r}: expected {EQUAL!r} or {LOG_NORMAL!r}.")
    rng, centre = random.Random(workload.seed), math.log(_MEAN * longest) - _SPREAD**2 / 2
    drawn = [rng.lognormvariate(centre, _SPREAD) for _ in chosen]
    lengths = [min(max(round(length), 1), longest) for length in drawn]
    lengths[drawn.index(max(drawn))] = longest
    return dict(zip(chosen, lengths, strict=True))


@dataclass(frozen=True)
class Answered:
    """Which prompts a rollout has answered, and at what length."""

    prompts_hash: str
    """``prompts_hash`` of the prompts."""
    response_lengths: list[int]
    """Tokens of each response, in the order of the prompts' tokens."""


def answered(prompt_ids: Sequence[Sequence[int]], lengths: Sequence[int]) -> Answered:
    """The answers of a rollout, whatever its order: each length goes with its own prompt."""
    pairs = zip(prompt_ids, lengths, strict=True)
    ordered = sorted((list(map(int, ids)), int(length)) for ids, length in pairs)
    return Answered(prompts_hash(prompt_ids), [length for _, length in ordered])


def expected_answers(workload: Workload, prompts: Prompts) -> Answered:
    """What every rollout of a workload has to be."""
    asked, targets = asked_prompts(workload, prompts), target_lengths(workload, prompts)
    return answered(asked, [targets[tuple(ids)] for ids in asked])


def check_logprobs(workload: Workload, error: float) -> None:
    """The gate of every side before it trains.

    Args:
        workload: Says the precision.
        error: Mean absolute difference to the frozen log-probs (nats per token).

    Raises:
        GateError: The side computes something else.
    """
    most = TOLERANCE[workload.dtype]
    if not error <= most:
        raise GateError(
            f"log-probs of the frozen responses differ by {error:.4g} nats per token on average: "
            f"expected at most {most:g} in {workload.dtype}. This side scores other tokens, or "
            "with other weights."
        )


def update_faults(workload: Workload, update: Update, expected: Answered) -> list[str]:
    """The gate behind every update: what it did that it should not have done."""
    faults = []
    if len(update.response_lengths) != workload.episodes:
        faults.append(f"{len(update.response_lengths)} episodes instead of {workload.episodes}")
    pairs = zip(update.response_lengths, expected.response_lengths, strict=False)
    wrong = [f"{found} tokens instead of {target}" for found, target in pairs if found != target]
    if wrong:
        faults.append(f"{len(wrong)} responses do not end where they have to, e.g. {wrong[0]}")
    if update.prompts_hash != expected.prompts_hash:
        faults.append("the prompts are not the given ones, token for token")
    if update.optimizer_steps != workload.steps:
        faults.append(f"{update.optimizer_steps} optimizer steps instead of {workload.steps}")
    if not math.isfinite(update.loss):
        faults.append(f"the loss is {update.loss}")
    most = MOST_DRIFT[workload.dtype]
    if update.drift is not None and not update.drift <= most:
        faults.append(
            f"sampler and trainer differ by {update.drift:.3g} nats per token instead of at most "
            f"{most:g}"
        )
    return faults


def check_update(workload: Workload, update: Update, expected: Answered) -> None:
    """Refuses an update that is not the work to be compared.

    Raises:
        GateError: Names everything that is wrong.
    """
    faults = update_faults(workload, update, expected)
    if faults:
        raise GateError("this is not the work to be timed: " + "; ".join(faults) + ".")


def read_workload(path: str | Path) -> Workload:
    """Reads a workload."""
    return Workload(**json.loads(Path(path).read_text(encoding="utf-8")))
