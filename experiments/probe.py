"""``instructrec probe``: is there anything to learn, and what will it cost? Before training.

"Reward 0, loss 0" is the commonest trouble of reinforcement learning on language models: the
policy never gets a reward, so nothing tells it where to go. The probe lets the untouched policy
answer some instructions of the training split, greedily and by sampling, shows what an update
would have to learn from, and runs one update on a copy that is thrown away to see what it costs.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from instructrec.errors import ConfigError, RewardError
from instructrec.experiments import setup_run, telling
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.evaluation import Evaluation, evaluate
from instructrec.experiments.jsonl import Row
from instructrec.experiments.listing import table
from instructrec.experiments.progress import format_duration
from instructrec.policies.config import Sampling

if TYPE_CHECKING:
    from instructrec.policies.causal_lm import CausalLMPolicy

ENOUGH_VARIANCE = 0.1
"""Share of prompts with mixed outcomes below which a run learns very slowly."""


@dataclass(frozen=True)
class ProbeConfig:
    """How closely the probe looks."""

    instructions: int = 64
    """Instructions of the training split, taken from the first."""
    samples: int = 8
    """Sampled responses to each."""
    update: bool = True
    """Run one update (its weights are thrown away) to measure time and memory."""

    def __post_init__(self) -> None:
        for name, least in (("instructions", 1), ("samples", 2)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"probe.{name} = {getattr(self, name)}: expected at least {least}."
                )


@dataclass(frozen=True)
class Signal:
    """What the rewards of some instructions offer to learn from."""

    instructions: int
    """Instructions."""
    greedy: float
    """Mean reward of the greedy response."""
    mean: float
    """Mean reward of the sampled responses."""
    best: float
    """Mean over instructions of the best sampled reward (pass@k where the reward is 0 or 1)."""
    spread: float
    """Mean over instructions of the standard deviation of the sampled rewards."""
    flat: float
    """Share of the instructions whose sampled rewards are all equal."""
    cut: float
    """Share of the sampled responses that the token budget cut."""


def run_probe(
    config: TrainConfig,
    probe: ProbeConfig,
    *,
    load_policy: setup_run.LoadPolicy = setup_run.load,
    say: telling.Say = telling.say,
) -> dict[str, Signal]:
    """Probes the start of a PPO run and reports; writes nothing to the disk.

    Args:
        config: The run, as for ``instructrec train``.
        probe: How closely to look.
        load_policy: Makes the policy.
        say: Receives lines for people.

    Returns:
        The signal of each family, and of ``all`` instructions together.

    Raises:
        ConfigError: The run is no PPO run.
        DataError: The task is too small for a rollout, or lacks the filter's column.
        RewardError: There is nothing to learn: no reward, or the same for every response.
    """
    if config.supervised is not None:
        raise ConfigError(
            f"algorithm = {config.algorithm!r}: the probe looks at the rewards of a PPO run; "
            "supervised fine-tuning needs none."
        )
    config = config.resolved()
    materials = setup_run.make_materials(config)
    if probe.update:
        config.ppo.check_task(len(materials.train), materials.train.columns)
    from instructrec.policies.labels import writer

    model = setup_run.model_folder(config.policy.model)
    settings = dataclasses.replace(config.policy, model=model)
    policy = writer(load_policy(settings, config.seed, config.eval_sampling), "a probe of rewards")
    config = setup_run.with_micro_batch(config, policy)
    from instructrec.devices import describe

    machine = describe(policy.device, policy.compute_dtype)
    say(f"{config.policy.model} on {materials.train.name}, {machine}")
    measured = _measure(config, probe, materials, policy)
    signals = signals_of(*measured)
    say("\n" + report(signals, probe.samples))
    if probe.update:
        say("\n" + "\n".join(_costs(config, materials, policy)))
    say("\n" + verdict(signals["all"], measured[1], config))
    return signals


def _measure(
    config: TrainConfig, probe: ProbeConfig, materials: setup_run.Materials, policy: CausalLMPolicy
) -> tuple[Evaluation, Evaluation]:
    """Measures the policy's greedy responses and several sampled ones."""
    ppo = config.ppo
    sampled = Sampling(ppo.response_length, ppo.temperature, stop_strings=ppo.stop_strings)

    def measure(sampling: Sampling, samples: int) -> Evaluation:
        return evaluate(
            policy,
            materials.train,
            materials.reward,
            sampling=sampling,
            samples=samples,
            batch_size=config.eval.batch_size,
            limit=probe.instructions,
            episodes=config.task.episodes,
        )

    greedy = dataclasses.replace(sampled, temperature=0.0)
    return measure(greedy, 1), measure(sampled, probe.samples)


def signals_of(greedy: Evaluation, sampled: Evaluation) -> dict[str, Signal]:
    """Returns family -> signal, and that of ``all`` last; families only where there are several."""
    families = list(dict.fromkeys(row["family"] for row in sampled.rows))
    groups: dict[str, Any] = {str(f): f for f in families} if len(families) > 1 else {}
    signals = {
        name: _signal(
            [row for row in greedy.rows if row["family"] == family],
            [row for row in sampled.rows if row["family"] == family],
        )
        for name, family in groups.items()
    }
    return signals | {"all": _signal(greedy.rows, sampled.rows)}


def _signal(greedy: Sequence[Row], sampled: Sequence[Row]) -> Signal:
    by_instruction: dict[str, list[float]] = {}
    for row in sampled:
        if row["total"] is not None:
            by_instruction.setdefault(row["id"], []).append(row["total"])
    groups = [scores for scores in by_instruction.values() if len(scores) > 1]
    return Signal(
        instructions=len({row["id"] for row in sampled}),
        greedy=_mean([row["total"] for row in greedy if row["total"] is not None]),
        mean=_mean([score for scores in by_instruction.values() for score in scores]),
        best=_mean([max(scores) for scores in by_instruction.values()]),
        spread=_mean([statistics.pstdev(scores) for scores in groups]),
        flat=_mean([float(len(set(scores)) == 1) for scores in groups]),
        cut=_mean([float(row["stop_reason"] == "length") for row in sampled]),
    )


def report(signals: dict[str, Signal], samples: int) -> str:
    """The signals as a table."""
    measured = (
        "greedy",
        f"mean@{samples}",
        f"best@{samples}",
        "spread (std)",
        "no spread",
        "cut short",
    )
    rows: list[tuple[str, ...]] = [("", "instructions", *measured)]
    for name, s in signals.items():
        numbers = (_known(x, ".3f") for x in (s.greedy, s.mean, s.best, s.spread))
        rows.append((name, str(s.instructions), *numbers, _known(s.flat, ".0%"), f"{s.cut:.0%}"))
    return table(rows)


def _known(value: float, form: str) -> str:
    """A number for the table; a mean of nothing is a dash."""
    return "-" if math.isnan(value) else format(value, form)


def verdict(signal: Signal, sampled: Evaluation, config: TrainConfig) -> str:
    """One paragraph: is there something to learn from?

    Raises:
        RewardError: No.
    """
    number = len(sampled.rows)
    scores = [row["total"] for row in sampled.rows if row["total"] is not None]
    example = sampled.rows[0]
    shown = (
        f"For example {example['prompt']!r} got {example['response']!r}; the reference is "
        f"{example['reference']!r}."
    )
    if not scores:
        raise RewardError(
            f"none of {number} responses has a usable reward: nothing can be learned. {shown} "
            "Check the rewards' conditions with `instructrec evaluate`."
        )
    cut = ""
    if signal.cut > 0.5:
        cut = (
            f"{signal.cut:.0%} of the responses were cut at ppo.response_length = "
            f"{config.ppo.response_length}: raise it, or set ppo.stop_strings."
        )
    if len(set(scores)) == 1:
        advice = "Start from a supervised warm start (`instructrec sft`), ease the reward, or"
        raise RewardError(
            f"the reward was {scores[0]:g} for all {len(scores)} responses: there is nothing to "
            f"learn from. {' '.join(filter(None, (shown, cut, advice)))} look whether the form of "
            "the answer is the trouble."
        )
    mixed = 1 - signal.flat
    lines = [f"{mixed:.0%} of the instructions got different rewards for different responses."]
    if math.isnan(mixed):
        lines = [
            "No instruction has two responses with a reward, so it is unknown how they differ."
        ]
    if mixed < ENOUGH_VARIANCE:
        lines.append(
            "That is little to learn from: most of a rollout will say nothing about what was good."
        )
    if cut:
        lines.append(cut)
    if len(lines) == 1:
        lines.append("There is something to learn.")
    return " ".join(lines)


def _costs(
    config: TrainConfig, materials: setup_run.Materials, policy: CausalLMPolicy
) -> list[str]:
    """Runs one update and says what a run costs in time and memory."""
    parts = memory_by_part(policy, config)
    # Behind the critic's warm-up, which is fewer updates than the run has: what most of them cost.
    one = dataclasses.replace(
        config.ppo,
        num_updates=1,
        critic_warmup_updates=0,
        eval_every=0,
        save_every=0,
        early_stopping_patience=0,
    )
    env = setup_run.training_env(config, materials)
    seen: list[dict[str, float]] = []
    setup_run.learner(config.algorithm)(
        policy, env, one, seed=config.seed, on_update=lambda metrics, rows: seen.append(metrics)
    )
    names = {"rollout": "time/rollout_s", "scoring": "time/score_s"}
    names |= {"log-probs and values": "time/advantage_s", "optimizer steps": "time/update_s"}
    phases = ", ".join(f"{name} {seen[0][key]:.1f} s" for name, key in names.items())
    total = seen[0]["time/total_s"] * config.ppo.num_updates
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items() if size)
    passes = f"{config.ppo.micro_batch_size} episodes"
    if config.ppo.micro_batch_tokens is not None:
        passes += f" and {config.ppo.micro_batch_tokens:,} tokens"
    return [
        f"micro-batch    at most {passes} in one forward/backward",
        f"one update     {seen[0]['time/total_s']:.1f} s ({phases})",
        f"the run        about {format_duration(total)} for {config.ppo.num_updates} updates; "
        "evaluations and checkpoints come on top",
        f"memory, GB     {listed}; peak of the process {peak_memory() / 1e9:.2f}, "
        "activations and the libraries included",
    ]


def memory_by_part(policy: CausalLMPolicy, config: TrainConfig) -> dict[str, float]:
    """Bytes that the parts of a run hold for its whole length, from the numbers of weights.

    A critic of its own is counted with its gradients and moments.
    """
    from instructrec.policies.critic import make_critic
    from instructrec.rl.reference import reference_bytes

    weights = list(policy.model.parameters())
    trained = sum(p.numel() for p in weights if p.requires_grad)
    ppo = config.ppo
    own = []
    if ppo.critic == "separate" and config.algorithm == "ppo":
        critic = make_critic(policy, "separate", detach=True, source=ppo.critic_model)
        shared = {id(p) for p in weights}
        own = [p for p in critic.parameters() if id(p) not in shared]
    return {
        "weights": sum(p.nbytes for p in weights),
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "critic": sum(p.nbytes + 12 * p.numel() * p.requires_grad for p in own),
        "reference": reference_bytes(policy) if ppo.kl_coef else 0,
        "decode copy": getattr(policy.decoder, "copy_bytes", 0),
    }


def peak_memory() -> float:
    """Largest memory of this process so far in bytes, or of its GPU where it uses one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return float(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


if __name__ == "__main__":
    from instructrec.experiments.cli import main

    sys.exit(main(["probe", *sys.argv[1:]]))
