"""How fast an update could be on this machine, and how fast it was.

The limit of a phase is the larger of two times: its FLOPs at the rate at which the machine
multiplies matrices of the model's shapes, and its bytes at the rate at which it copies. Counted is
what the algorithm needs: no padding, nothing computed twice; layers below the first trained one
and tokens that all prompts begin with only as often as they have to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.flops import ModelCost, model_cost
from instructrec.policies.rates import Rates, measure_rates
from instructrec.policies.trunk import Trunk
from instructrec.rl.config import PPOConfig
from instructrec.rl.experience import Experience
from instructrec.rl.sharing import own_rows

if TYPE_CHECKING:
    from instructrec.rl.learner import PPOLearner

_ADAM_NUMBERS = 7
"""Numbers that AdamW moves for a weight: it reads four (weight, gradient, two moments) and writes
three."""


@dataclass(frozen=True)
class Lengths:
    """The sequences of a rollout, in tokens."""

    prompts: tuple[int, ...]
    """Prompt of each episode."""
    responses: tuple[int, ...]
    """Response of each episode."""
    shared: int = 0
    """First tokens that all prompts have in common and that run once for all."""

    @property
    def trunk(self) -> tuple[float, float]:
        """Tokens of a pass over all sequences, and pairs of a query with a key."""
        totals = [p + r for p, r in zip(self.prompts, self.responses, strict=True)]
        tokens = self.shared + sum(total - self.shared for total in totals)
        once = _pairs(self.shared)
        return float(tokens), once + sum(_pairs(total) - once for total in totals)


@dataclass(frozen=True)
class Recipe:
    """What an update does with its rollout."""

    epochs: float
    """Passes over the rollout."""
    steps: float
    """Optimizer steps."""
    generations: int = 1
    """Episodes that share one prompt's pass."""
    reference: bool = True
    """Whether a reference policy reads the rollout."""
    old_logprobs: bool = True
    """Whether the trainer reads the rollout once before its first step; False where decoding's own
    log-probs and states are taken over."""
    separate_critic: bool = False
    """Whether a critic has a model of its own, of the policy's size."""
    reuses_lower: bool = True
    """Whether frozen lower layers run once for all epochs and for the reference."""
    trained_share: float = 1.0
    """Share of the episodes that the epochs read."""
    trains_policy: bool = True
    """False while only the critic learns."""


@dataclass(frozen=True)
class Need:
    """What a phase has to do at least."""

    flops: float
    """FLOPs of matrix products."""
    bytes: float = 0.0
    """Bytes read and written."""

    def seconds(self, rates: Rates) -> float:
        """Least time on a machine with these rates."""
        return max(self.flops / rates.flops_per_s, self.bytes / rates.bytes_per_s)


def needs(
    cost: ModelCost, lengths: Lengths, recipe: Recipe, *, decode_bytes: int, train_bytes: int = 4
) -> dict[str, Need]:
    """What each phase of an update has to do.

    Args:
        cost: The model.
        lengths: The rollout.
        recipe: The algorithm.
        decode_bytes: Size of a number while decoding.
        train_bytes: Size of a trained weight and of its moments.

    Returns:
        ``prefill``, ``decode``, ``reference``, ``values`` (everything that reads the rollout
        before the first step), ``update`` and ``optimizer``.
    """
    tokens, pairs = lengths.trunk
    outputs = float(sum(lengths.responses))
    upper = recipe.reuses_lower and cost.lower.num > 0
    values = cost.forward(tokens, pairs, outputs) if recipe.old_logprobs else 0.0
    epoch = cost.forward(tokens, pairs, outputs, upper=upper)
    if recipe.trains_policy:
        epoch += cost.backward(tokens, pairs, outputs)
    if recipe.separate_critic:
        values += cost.forward(tokens, pairs, 0)
        epoch += cost.forward(tokens, pairs, 0) + cost.backward(tokens, pairs, 0)
    models = float(recipe.trains_policy) + recipe.separate_critic
    moved = adam_bytes(cost.num_trained, train_bytes)
    return {
        **_rollout(cost, lengths, recipe, decode_bytes),
        "reference": Need(
            cost.forward(tokens, pairs, outputs, upper=upper) if recipe.reference else 0.0
        ),
        "values": Need(values),
        "update": Need(recipe.epochs * recipe.trained_share * epoch),
        "optimizer": Need(0.0, recipe.steps * models * moved),
    }


def adam_bytes(weights: int, size: int = 4) -> int:
    """Bytes that a step of AdamW reads and writes.

    Args:
        weights: How many it changes.
        size: Size of a weight and of its moments.
    """
    return _ADAM_NUMBERS * size * weights


def _rollout(
    cost: ModelCost, lengths: Lengths, recipe: Recipe, decode_bytes: int
) -> dict[str, Need]:
    """Each prompt once, then token after token; every step reads all weights and the cache."""
    unique = lengths.prompts[:: recipe.generations]
    tokens = lengths.shared + sum(p - lengths.shared for p in unique)
    once = _pairs(lengths.shared)
    pairs = once + sum(_pairs(p) - once for p in unique)
    episodes = list(zip(lengths.prompts, lengths.responses, strict=True))
    seen = sum(_pairs(p + r) - _pairs(p) for p, r in episodes)
    outputs = sum(lengths.responses)
    weights = cost.matrix_weights * decode_bytes
    cached = seen * cost.num_layers * cost.cache_width * decode_bytes
    read = max(lengths.responses) * weights + cached
    return {
        "prefill": Need(cost.forward(tokens, pairs, len(unique)), weights),
        "decode": Need(cost.forward(outputs, seen, outputs), read),
    }


def _pairs(tokens: int) -> float:
    return tokens * (tokens + 1) / 2


class Speedometer:
    """Says after each update how fast it was; measures the machine once, when it is made.

    Of several processes, each holds its own share of the work against its own part of the machine;
    episodes and tokens are those of all.

    Args:
        policy: The policy.
        trunk: Its trunk.
        config: Settings, with the micro-batch size resolved.
    """

    def __init__(self, policy: CausalLMPolicy, trunk: Trunk, config: PPOConfig) -> None:
        self.cost, self.config = model_cost(trunk), config
        self.decode_bytes = policy.compute_dtype.itemsize
        self.rates = measure_rates(
            self.cost.shapes,
            tokens=(config.micro_batch_size or 1) * 2 * config.response_length,
            dtype=policy.compute_dtype,
            device=policy.device,
        )

    def metrics(self, learner: PPOLearner, laps: Mapping[str, float]) -> dict[str, float]:
        """The metrics of the update that a learner has just finished.

        Args:
            learner: Knows the rollout and what was done with it.
            laps: Seconds of its phases, by their metric keys.
        """
        experience, steps = learner.experience, learner.steps_taken + learner.stopped_early
        own = list(own_rows(len(experience.sequences)))
        config = self.config
        lengths = lengths_of(experience, own)
        recipe = Recipe(
            epochs=steps / config.num_mini_batches,
            steps=steps,
            generations=config.num_generations,
            reference=experience.ref_logprobs_BT is not None,
            old_logprobs=not learner.reuse.used,
            separate_critic=config.critic == "separate",
            trained_share=len(learner.trained_rows(own)) / len(own),
            trains_policy=learner.updates > config.critic_warmup_updates,
        )
        found = needs(self.cost, lengths, recipe, decode_bytes=self.decode_bytes)
        seconds = max(sum(laps.values()), 1e-9)
        limit = sum(need.seconds(self.rates) for need in found.values())
        update_rate = found["update"].flops / max(laps["time/update_s"], 1e-9)
        return {
            "speed/episodes_per_s": len(experience.sequences) / seconds,
            "speed/tokens_per_s": sum(map(len, experience.sequences)) / seconds,
            "speed/update_flops_per_s": update_rate,
            "speed/update_limit_frac": update_rate / self.rates.flops_per_s,
            "speed/limit_frac": limit / seconds,
        }


def lengths_of(experience: Experience, rows: Sequence[int]) -> Lengths:
    """Lengths of some sequences; what the environment says between turns counts as response."""
    prompts = tuple(experience.prompt_lengths[i] for i in rows)
    totals = [len(experience.sequences[i]) for i in rows]
    responses = tuple(total - p for total, p in zip(totals, prompts, strict=True))
    return Lengths(prompts, responses, experience.shared)
