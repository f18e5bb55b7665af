"""Settings of the learning algorithms: plain frozen dataclasses, no torch and no TRL.

The string under each field is its help text on the command line. Names are those of TRL's former
``PPOConfig`` where they mean the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from instructrec.errors import ConfigError


def _require(condition: bool, field: str, given: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{field} = {given!r}: expected {expected}.")


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation on rollouts of an instruction environment."""

    num_updates: int = 16
    """Updates to run; one update is one rollout and its epochs."""
    episodes_per_update: int = 128
    """Episodes (responses) collected for each update."""
    num_ppo_epochs: int = 2
    """Passes over the rollout in each update; it is reshuffled before every pass."""
    num_mini_batches: int = 4
    """Optimizer steps in each pass; must divide episodes_per_update."""
    micro_batch_size: int | None = None
    """Episodes in one forward/backward; None picks it from response_length and memory."""
    learning_rate: float = 2e-5
    """Peak learning rate of the policy."""
    critic_learning_rate: float = 1e-3
    """Peak learning rate of the value head."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = 8
    """Optimizer steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW weight decay of the policy (the value head has none)."""
    adam_beta1: float = 0.9
    """AdamW first-moment decay."""
    adam_beta2: float = 0.95
    """AdamW second-moment decay."""
    max_grad_norm: float = 1.0
    """Gradient clipping: L2 norm over policy and critic together."""
    response_length: int = 64
    """Most tokens in one response."""
    temperature: float = 1.0
    """Sampling temperature of the rollouts; log-probs everywhere are at this temperature."""
    stop_strings: tuple[str, ...] = ()
    """A response ends once it contains one of these strings."""
    gamma: float = 1.0
    """Discount per token, in (0, 1]."""
    lam: float = 1.0
    """Lambda of generalised advantage estimation, in [0, 1]."""
    advantage: Literal["gae", "batch_mean"] = "gae"
    """Advantage estimator: the critic's (gae), or the return minus the mean return of the batch."""
    whiten_advantages: Literal["none", "scale", "whiten"] = "scale"
    """Once per rollout: leave as they are, divide by their root mean square, or centre as well."""
    advantage_std_floor: float = 0.2
    """Smallest divisor of the whitening, in reward units: a solved task stays solved."""
    cliprange: float = 0.2
    """Lower clip of the probability ratio: 1 - cliprange."""
    cliprange_high: float = 0.28
    """Upper clip of the probability ratio: 1 + cliprange_high."""
    cliprange_value: float | None = None
    """Clip of the value change in return units; None (default) does not clip."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    critic_detach: bool = True
    """Whether the value loss trains the head alone and leaves the shared trunk to the policy."""
    kl_coef: float = 0.05
    """Weight of the per-token KL (k1) in the reward; 0 loads no reference model."""
    missing_eos_penalty: float | None = None
    """Subtracted from the score of a response that was cut by response_length."""
    importance_cap: float = 2.0
    """Cap of the weight that corrects the sampler's log-probs to the trainer's."""
    max_error_frac: float = 0.2
    """Stop when more than this share of a rollout has a failed reward."""
    max_reward: float = 1e4
    """Stop when a reward is larger than this in absolute value."""
    eval_every: int = 0
    """Updates between two evaluations on the validation split; 0 evaluates at the end only."""
    early_stopping_patience: int = 0
    """Evaluations without a better score after which training stops; 0 never stops early."""
    save_every: int = 0
    """Updates between two checkpoints; 0 saves at the end only."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept on disk, the best one apart."""

    def __post_init__(self) -> None:
        for field in ("num_updates", "episodes_per_update", "num_ppo_epochs", "num_mini_batches"):
            _require(getattr(self, field) >= 1, f"ppo.{field}", getattr(self, field), "at least 1")
        for field in ("response_length", "keep_checkpoints"):
            _require(getattr(self, field) >= 1, f"ppo.{field}", getattr(self, field), "at least 1")
        for field in ("learning_rate", "critic_learning_rate", "temperature", "max_grad_norm"):
            _require(getattr(self, field) > 0, f"ppo.{field}", getattr(self, field), "more than 0")
        for field in ("eval_every", "early_stopping_patience", "save_every", "warmup_steps"):
            _require(getattr(self, field) >= 0, f"ppo.{field}", getattr(self, field), "0 or more")
        for field in ("kl_coef", "vf_coef", "weight_decay", "advantage_std_floor"):
            _require(getattr(self, field) >= 0, f"ppo.{field}", getattr(self, field), "0 or more")
        _require(0 < self.gamma <= 1, "ppo.gamma", self.gamma, "a number in (0, 1]")
        _require(0 <= self.lam <= 1, "ppo.lam", self.lam, "a number in [0, 1]")
        _require(0 < self.cliprange < 1, "ppo.cliprange", self.cliprange, "a number in (0, 1)")
        _require(self.cliprange_high > 0, "ppo.cliprange_high", self.cliprange_high, "more than 0")
        _require(self.importance_cap >= 1, "ppo.importance_cap", self.importance_cap, "1 or more")
        _require(
            self.episodes_per_update % self.num_mini_batches == 0,
            "ppo.episodes_per_update",
            self.episodes_per_update,
            f"a multiple of ppo.num_mini_batches = {self.num_mini_batches}",
        )
        size = self.mini_batch_size
        _require(
            self.micro_batch_size is None
            or (self.micro_batch_size >= 1 and size % self.micro_batch_size == 0),
            "ppo.micro_batch_size",
            self.micro_batch_size,
            f"a divisor of episodes_per_update / num_mini_batches = {size}",
        )

    @property
    def mini_batch_size(self) -> int:
        """Episodes behind one optimizer step."""
        return self.episodes_per_update // self.num_mini_batches

    @property
    def steps_per_update(self) -> int:
        """Optimizer steps in one update."""
        return self.num_ppo_epochs * self.num_mini_batches

    def with_micro_batch_size(self, device_type: str) -> PPOConfig:
        """Fills in a micro-batch size that was left open.

        The largest divisor of the minibatch that stays within a fixed budget of tokens, a
        sequence being counted as 64 tokens and twice the response length.

        Args:
            device_type: ``cuda``, ``cpu``, ...; a GPU gets the larger budget.
        """
        if self.micro_batch_size is not None:
            return self
        budget = 16_384 if device_type == "cuda" else 4_096
        most = max(1, budget // (2 * self.response_length + 64))
        size = self.mini_batch_size
        best = max(n for n in range(1, size + 1) if size % n == 0 and n <= most)
        return replace(self, micro_batch_size=best)


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on demonstrations (loss on the responses only)."""

    demonstrations: int = 50
    """Demonstrations taken from the training split (all of them when there are fewer)."""
    max_steps: int = 20
    """Optimizer steps; 0 trains on nothing and keeps the weights."""
    batch_size: int = 16
    """Demonstrations behind one optimizer step."""
    micro_batch_size: int | None = None
    """Demonstrations in one forward/backward; None takes the whole batch."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    max_grad_norm: float = 1.0
    """Gradient clipping by L2 norm."""
    validation_demonstrations: int = 50
    """Demonstrations of the validation split on which the loss is watched."""
    eval_every: int = 0
    """Steps between two validations; 0 never validates and keeps the last weights."""
    best_by: Literal["loss", "reward"] = "loss"
    """What validations go by: loss on validation demonstrations, or mean reward of responses."""
    early_stopping_patience: int = 0
    """Validations without improvement after which training stops; 0 never stops early."""

    def __post_init__(self) -> None:
        _require(self.demonstrations >= 1, "sft.demonstrations", self.demonstrations, "at least 1")
        _require(self.batch_size >= 1, "sft.batch_size", self.batch_size, "at least 1")
        _require(self.max_steps >= 0, "sft.max_steps", self.max_steps, "0 or more")
        _require(self.learning_rate > 0, "sft.learning_rate", self.learning_rate, "more than 0")
        _require(
            self.early_stopping_patience == 0 or self.eval_every > 0,
            "sft.early_stopping_patience",
            self.early_stopping_patience,
            "0, or sft.eval_every above 0 as well",
        )
