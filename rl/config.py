"""Settings of the learning algorithms: plain frozen dataclasses, no torch and no TRL.

The string under each field is its help text on the command line. Names are those of TRL's former
``PPOConfig`` where they mean the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from instructrec.choices import check_choices
from instructrec.errors import ConfigError, DataError
from instructrec.rl.config_rules import complaints
from instructrec.rl.config_rules import require as _require
from instructrec.rl.monitor_config import MonitorsConfig
from instructrec.rl.supervised_config import DPOConfig as DPOConfig
from instructrec.rl.supervised_config import SFTConfig as SFTConfig

_COUNTS = (
    *("num_updates", "episodes_per_update", "num_generations", "num_ppo_epochs"),
    *("num_mini_batches", "response_length", "keep_checkpoints", "kl_horizon"),
    *("rollout_chunks", "curriculum_window", "max_bad_steps"),
)
_POSITIVE = (
    *("learning_rate", "critic_learning_rate", "temperature", "max_grad_norm", "max_drift"),
    *("cliprange_high", "target_kl", "entropy_target", "entropy_coef_max", "kl_target"),
    "cliprange_value",
)
_NOT_NEGATIVE = (
    *("eval_every", "early_stopping_patience", "save_every", "warmup_steps", "kl_coef", "vf_coef"),
    "save_minutes",
    *("weight_decay", "advantage_std_floor", "entropy_coef", "critic_warmup_updates"),
    *("max_error_batches", "missing_eos_penalty"),
)
RATE_OF_A_HEAD = 1e-3
"""Peak learning rate of a critic that is a linear head; a whole model has the policy's."""

MAY_CHANGE = (
    *("num_updates", "eval_every", "early_stopping_patience", "save_every", "save_minutes"),
    "keep_checkpoints",
    *("max_error_frac", "max_error_batches", "max_reward", "max_drift", "max_bad_steps"),
    "monitors",
)
"""Settings that may differ when a run is continued: they do not change what an update does, but for
the learning rate of a schedule that goes by ``num_updates``, which goes on by the new number. Of
``monitors``, the rules that steer may not."""

CHOSEN_AT_START = ("micro_batch_size", "micro_batch_tokens")
"""Settings that a run fills in where they are left open, and keeps when it is continued."""


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation on rollouts of an instruction environment."""

    num_updates: int = 16
    """Updates to run; one update is one rollout and its epochs."""
    episodes_per_update: int = 128
    """Episodes (responses) collected for each update, over all processes."""
    num_generations: int = 1
    """Episodes of one rollout that answer one instruction (rloo, group and raft need 2 or more)."""
    num_ppo_epochs: int = 2
    """Passes over the rollout in each update; it is reshuffled before every pass."""
    num_mini_batches: int = 4
    """Optimizer steps in each pass; must divide episodes_per_update."""
    micro_batch_size: int | None = None
    """A process's episodes in one forward/backward; None: by response_length, turns and memory."""
    micro_batch_tokens: int | None = None
    """Most tokens in one forward/backward, padding included; None: by the free memory where
    micro_batch_size is left open, else no limit."""
    learning_rate: float = 2e-5
    """Peak learning rate of the policy."""
    critic_learning_rate: float | None = None
    """Peak learning rate of the critic; None: 1e-3 (shared), or learning_rate (separate)."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = 8
    """Optimizer steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW weight decay of the policy (the critic has none)."""
    adam_beta1: float = 0.9
    """AdamW first-moment decay."""
    adam_beta2: float = 0.95
    """AdamW second-moment decay."""
    max_grad_norm: float = 1.0
    """Largest L2 norm of a gradient; over policy and critic together where they share a trunk."""
    response_length: int = 64
    """Most tokens in one response."""
    temperature: float = 1.0
    """Sampling temperature of the rollouts; log-probs everywhere are at this temperature."""
    rollout_chunks: int = 1
    """Parts in which a rollout is decoded; each is scored while the next one is decoded."""
    stop_strings: tuple[str, ...] = ()
    """A response ends once it contains one of these strings."""
    on_length: Literal["terminal", "penalty", "mask"] = "terminal"
    """A response cut by response_length: just ends, pays missing_eos_penalty, or is left out."""
    missing_eos_penalty: float | None = None
    """Subtracted from the score of a response that was cut (on_length penalty)."""
    gamma: float = 1.0
    """Discount per step, in (0, 1]."""
    lam_policy: float = 1.0
    """Lambda of the advantages, in [0, 1]."""
    lam_value: float = 1.0
    """Lambda of the value targets, in [0, 1]."""
    gae_level: Literal["token", "turn"] = "token"
    """What counts as a step for gamma and lambda: a token, or a whole turn."""
    advantage: Literal["gae", "rloo", "group", "batch_mean"] = "gae"
    """Baseline: critic, others of the prompt, its group's mean and std, or the batch's mean."""
    whiten_advantages: Literal["none", "scale", "whiten"] = "scale"
    """Once per rollout: leave as they are, divide by their root mean square, or centre as well."""
    advantage_std_floor: float = 0.2
    """Smallest divisor of whitening and group, in reward units: a solved task stays solved."""
    cliprange: float = 0.2
    """Lower clip of the probability ratio: 1 - cliprange."""
    cliprange_high: float = 0.28
    """Upper clip of the probability ratio: 1 + cliprange_high."""
    cliprange_value: float | None = None
    """Clip of the value change in return units; None (default) does not clip."""
    dual_clip: float | None = None
    """Largest ratio that counts against a token of negative advantage, e.g. 3; None: no bound."""
    target_kl: float | None = None
    """Ends an update at a minibatch that is this far from the rollout's policy (nats/token)."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus; where it starts when entropy_target is set."""
    entropy_target: float | None = None
    """Entropy that the bonus keeps up, in nats per token; None keeps entropy_coef fixed."""
    entropy_coef_max: float = 0.1
    """Largest weight that an entropy bonus with a target may reach."""
    prompt_filter: str | None = None
    """Passes over instructions whose rewards hardly vary: id, or a column to judge them by."""
    prompt_filter_floor: float = 0.1
    """Least chance of an instruction to be played all the same, in (0, 1]."""
    curriculum: str | None = None
    """Column with the level, a whole number: the pass rate decides which level is played."""
    curriculum_pass: float = 0.99
    """Least total reward with which an answer passes."""
    curriculum_window: int = 64
    """Latest answers at a level by whose pass rate it is raised or lowered."""
    curriculum_raise: float = 0.8
    """Share of passes from which the next level is played, in (0, 1]."""
    curriculum_lower: float = 0.1
    """Share of passes down to which the level before is played, in [0, 1)."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    critic: Literal["shared", "separate"] = "shared"
    """A value head on the policy's own trunk, or a critic with a model of its own."""
    critic_model: str | None = None
    """Model that a separate critic starts from, e.g. a reward model; None: the policy's start."""
    critic_detach: bool = True
    """Whether the value loss trains the head alone and leaves the shared trunk to the policy."""
    critic_warmup_updates: int = 0
    """First updates in which only the critic learns."""
    kl_coef: float = 0.05
    """Weight of the KL to the reference; 0 loads no reference model."""
    kl_penalty: Literal["reward", "loss"] = "reward"
    """Where the KL stands: per token in the reward (k1), or in the loss (k2)."""
    kl_target: float | None = None
    """KL that an adaptive coefficient aims at, in nats per response; None keeps kl_coef fixed."""
    kl_horizon: int = 10_000
    """Episodes over which an adaptive KL coefficient adapts."""
    importance_cap: float = 2.0
    """Cap of the weight that corrects the sampler's log-probs to the trainer's."""
    reuse_decoding: bool = True
    """Take log-probs and frozen layers' states from decoding, while both agree to 0.02 nats."""
    max_drift: float = 0.3
    """Stop when sampler and trainer differ by more than this, in nats per token."""
    max_error_frac: float = 0.2
    """Stop when more than this share of a rollout has a failed reward."""
    max_error_batches: int = 0
    """Stop when a reward failed on responses of this many batches in a row; 0 sets no limit."""
    max_reward: float = 1e4
    """Stop when a reward is larger than this in absolute value."""
    max_bad_steps: int = 3
    """Stop at this many steps in a row whose loss or gradient is not finite; each is left out."""
    monitors: MonitorsConfig = MonitorsConfig()
    """What is watched after every update, and what happens when a number looks wrong."""
    eval_every: int = 0
    """Updates between two evaluations on the validation split; 0 evaluates at the end only."""
    early_stopping_patience: int = 0
    """Evaluations without a better score after which training stops; 0 never stops early."""
    save_every: int = 0
    """Updates between two checkpoints; 0 goes by save_minutes alone."""
    save_minutes: float = 10.0
    """Minutes after which an update ends with a checkpoint in any case; 0: never by the clock."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept on disk, the best one apart."""

    def __post_init__(self) -> None:
        check_choices(self, "ppo")
        for field in _COUNTS:
            self._check(field, lambda value: value >= 1, "at least 1")
        for field in _POSITIVE:
            self._check(field, lambda value: value > 0, "more than 0")
        for field in _NOT_NEGATIVE:
            self._check(field, lambda value: value >= 0, "0 or more")
        self._check("gamma", lambda value: 0 < value <= 1, "a number in (0, 1]")
        self._check("lam_policy", lambda value: 0 <= value <= 1, "a number in [0, 1]")
        self._check("lam_value", lambda value: 0 <= value <= 1, "a number in [0, 1]")
        self._check("cliprange", lambda value: 0 < value < 1, "a number in (0, 1)")
        self._check("prompt_filter_floor", lambda value: 0 < value <= 1, "a number in (0, 1]")
        self._check("curriculum_raise", lambda value: 0 < value <= 1, "a share in (0, 1]")
        self._check("curriculum_lower", lambda value: 0 <= value < 1, "a share in [0, 1)")
        self._check("importance_cap", lambda value: value >= 1, "1 or more")
        highest = 1 + self.cliprange_high
        self._check("dual_clip", lambda value: value > highest, f"more than {highest:g}, the clip")
        self._check("max_reward", lambda value: value > 0, "more than 0")
        self._check("max_error_frac", lambda value: 0 <= value <= 1, "a share in [0, 1]")
        self._check("adam_beta1", lambda value: 0 <= value < 1, "a number in [0, 1)")
        self._check("adam_beta2", lambda value: 0 <= value < 1, "a number in [0, 1)")
        self._check_sizes()
        for complaint in complaints(self):
            raise ConfigError(complaint)

    def _check(self, field: str, holds: Callable[[Any], bool], expected: str) -> None:
        value = getattr(self, field)
        if value is not None and not holds(value):
            raise ConfigError(f"ppo.{field} = {value!r}: expected {expected}.")

    def _check_sizes(self) -> None:
        per_step = f"a multiple of ppo.num_mini_batches = {self.num_mini_batches}"
        self._check("episodes_per_update", lambda n: n % self.num_mini_batches == 0, per_step)
        per_prompt = f"a multiple of ppo.num_generations = {self.num_generations}"
        self._check("episodes_per_update", lambda n: n % self.num_generations == 0, per_prompt)
        size = self.mini_batch_size
        divisor = f"a divisor of episodes_per_update / num_mini_batches = {size}"
        self._check("micro_batch_size", lambda n: n >= 1 and size % n == 0, divisor)
        self._check("micro_batch_tokens", lambda n: n >= 1, "at least 1")

    @property
    def mini_batch_size(self) -> int:
        """Episodes behind one optimizer step."""
        return self.episodes_per_update // self.num_mini_batches

    @property
    def critic_rate(self) -> float:
        """Peak learning rate of the critic: the one that was given, or the one of its kind."""
        if self.critic_learning_rate is not None:
            return self.critic_learning_rate
        return self.learning_rate if self.critic == "separate" else RATE_OF_A_HEAD

    @property
    def steps_per_update(self) -> int:
        """Optimizer steps in one update."""
        return self.num_ppo_epochs * self.num_mini_batches

    def check_task(self, num_instructions: int, columns: Sequence[str]) -> None:
        """Refuses a task that these settings cannot train on.

        Raises:
            ConfigError: A rollout is a single episode, which TRL's trainer refuses.
            DataError: It would not fill one rollout (TRL would run 0 steps and report success), or
                has no such column as the prompt filter or the curriculum goes by.
        """
        if self.episodes_per_update < 2:
            raise ConfigError(
                f"ppo.episodes_per_update = {self.episodes_per_update}: expected 2 or more, as "
                "TRL's trainer takes no rollout of a single episode."
            )
        needed = self.episodes_per_update // self.num_generations
        if num_instructions < needed:
            raise DataError(
                f"the training split has {num_instructions} instructions, fewer than the {needed} "
                f"of one rollout (ppo.episodes_per_update = {self.episodes_per_update}, "
                f"ppo.num_generations = {self.num_generations}). Add data or lower "
                "ppo.episodes_per_update."
            )
        if self.curriculum not in (None, *columns):
            raise DataError(
                f"ppo.curriculum = {self.curriculum!r}: the task has no such column. "
                f"Expected one of {', '.join(columns)}, or null for no curriculum."
            )
        if self.prompt_filter not in (None, "id", *columns):
            raise DataError(
                f"ppo.prompt_filter = {self.prompt_filter!r}: the task has no such column. "
                f"Expected one of {', '.join(('id', *columns))}, or null for no filter."
            )

    @property
    def tokens_per_turn(self) -> int:
        """Tokens of a turn with a prompt of ordinary length: 64 more than two responses."""
        return 2 * self.response_length + 64

    def with_micro_batch(self, tokens: int, max_turns: int = 1, processes: int = 1) -> PPOConfig:
        """Fills in the micro-batch, where its size was left open.

        The largest divisor of a process's minibatch whose episodes have no more than the given
        tokens while their prompts are of ordinary length. Those whose prompts are longer are cut
        by ``micro_batch_tokens``.

        Args:
            tokens: Most tokens in one forward/backward.
            max_turns: Most responses in one episode, all of which are in its sequence.
            processes: How many share the minibatch.
        """
        if self.micro_batch_size is not None:
            return self
        most = max(1, tokens // (max_turns * self.tokens_per_turn))
        size = self.mini_batch_size // processes
        best = max(n for n in range(1, size + 1) if size % n == 0 and n <= most)
        return replace(self, micro_batch_size=best, micro_batch_tokens=tokens)


_PPO_ONLY = (
    *("critic", "critic_model", "critic_detach", "critic_warmup_updates", "critic_learning_rate"),
    *("vf_coef", "gamma", "lam_policy", "lam_value", "gae_level", "advantage", "whiten_advantages"),
    *("advantage_std_floor", "cliprange", "cliprange_high", "cliprange_value", "dual_clip"),
    *("entropy_coef", "entropy_target", "entropy_coef_max", "kl_penalty", "kl_target"),
    *("kl_horizon", "importance_cap"),
)
"""Settings without effect where the loss is the plain likelihood of the best responses."""


def check_raft(config: PPOConfig) -> None:
    """Refuses settings that rejection sampling (``algorithm: raft``) cannot use.

    Raises:
        ConfigError: There is one response per prompt, or a setting would have no effect.
    """
    _require(
        config.num_generations >= 2,
        "ppo.num_generations",
        config.num_generations,
        "2 or more with algorithm = 'raft', which keeps the best of several responses to one "
        "instruction, e.g. 4",
    )
    _require(
        config.kl_coef == 0,
        "ppo.kl_coef",
        config.kl_coef,
        "0 with algorithm = 'raft', which keeps no reference model; set ppo.kl_coef to 0",
    )
    changed = [f for f in fields(config) if getattr(config, f.name) != f.default]
    useless = [f"ppo.{f.name}" for f in changed if f.name in _PPO_ONLY]
    if useless:
        raise ConfigError(
            f"{', '.join(useless)} given, but algorithm = 'raft' has no critic, no advantages, no "
            "ratio and no bonus: expected the default. Remove the key, or set algorithm to 'ppo'."
        )


def raft_settings(config: PPOConfig, num_generations: int) -> PPOConfig:
    """The same number of rollouts for rejection sampling; what it cannot use is at its default."""
    defaults = {f.name: f.default for f in fields(config) if f.name in _PPO_ONLY}
    usable: dict[str, Any] = {**defaults, "kl_coef": 0.0, "kl_target": None}
    usable["monitors"] = config.monitors.without_reference()
    return replace(config, **usable, num_generations=num_generations)
