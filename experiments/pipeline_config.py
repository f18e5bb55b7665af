"""What a pipeline is: plain frozen dataclasses, no torch and no TRL."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from instructrec.choices import check_choices
from instructrec.errors import ConfigError
from instructrec.experiments.changed_settings import changes, flatten, is_among
from instructrec.experiments.config import (
    EvalConfig,
    OutputConfig,
    TaskConfig,
    TrainConfig,
    reward_value,
)
from instructrec.experiments.folder_names import check_name, name_of_task
from instructrec.experiments.jsonl import plain
from instructrec.experiments.preference_data import PreferenceTask
from instructrec.experiments.preference_pairs import Mentor, Select
from instructrec.experiments.reward_model_config import RewardModelConfig, RewardOutputConfig
from instructrec.experiments.runfolder import read_config
from instructrec.experiments.tracking import TrackingConfig
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.redaction import refuse_secrets
from instructrec.rewards.parts import RewardSpec
from instructrec.rl.config import PPOConfig, SFTConfig
from instructrec.rl.reward_config import FitConfig, PreferenceConfig

GOLD, PROXY = "gold", "proxy"
"""Names of the true reward and of the learned one, in every stage."""
_KEPT = ("save_every", "save_minutes", "keep_checkpoints")
_RESUMABLE = (
    *("rounds", "tracking.", "output."),
    *(f"{of}.{name}" for of in ("sft", "ppo", "reward_model.fit") for name in _KEPT),
)
_UNTIL = {
    "mentor.": "preferences/round-1.jsonl",
    "reward_model.": "reward-model-*",
    "choice.": "ppo-*",
    "best_of": "best-of-*",
}
"""Settings -> what is made by them; they may change until it is there."""


@dataclass(frozen=True)
class SamplesConfig:
    """The responses of a round, between which a mentor chooses."""

    limit: int = 200
    """Instructions of a round; each round takes the next ones of the training split."""
    n: int = 4
    """Responses to each."""
    temperature: float = 1.0
    """Softmax temperature of the samples."""
    batch_size: int = 64
    """Responses decoded together."""

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("n", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"samples.{name} = {getattr(self, name)}: expected at least {least}."
                )
        if not self.temperature > 0:
            raise ConfigError(
                f"samples.temperature = {self.temperature}: greedy decoding gives the same "
                "response every time; expected more than 0."
            )


@dataclass(frozen=True)
class MentorConfig:
    """Who prefers."""

    kind: Literal["simulated", "human"] = "simulated"
    """simulated: the gold reward, with mistakes; human: `instructrec label`, for which it stops."""
    select: Select = "best_vs_worst"
    """Simulated: one pair per instruction (best_vs_worst), or of every two responses (all)."""
    min_margin: float = 0.0
    """Simulated: least distance of the gold scores of a pair."""
    noise: float = 0.0
    """Simulated: share of the pairs that are turned round, from 0 to 0.5."""
    max_pairs: int = 2000
    """Simulated: most pairs of a round."""
    wanted: int | None = None
    """Human: preferences of a round that are enough; None wants a word on every instruction."""

    def __post_init__(self) -> None:
        check_choices(self, "mentor")
        Mentor(self.noise)
        for name in ("max_pairs", "wanted"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"mentor.{name} = {value}: expected at least 1.")
        if not self.min_margin >= 0:
            raise ConfigError(f"mentor.min_margin = {self.min_margin}: expected 0 or more.")


@dataclass(frozen=True)
class LearnedRewardConfig:
    """The reward model of a round, trained from all preferences so far."""

    model: str | None = None
    """Model that it starts from; None takes the SFT policy."""
    validation_fraction: float = 0.2
    """Share of the instructions whose pairs choose the weights, where fit.eval_every asks for it;
    with test_fraction 0 they measure the reward model as well."""
    test_fraction: float = 0.0
    """Share whose pairs measure the reward model and choose nothing. 0 loses nothing while
    fit.eval_every is 0: then the validation pairs choose nothing either."""
    fit: FitConfig = FitConfig()
    """How the weights are fitted."""
    preference: PreferenceConfig = PreferenceConfig(center_coef=0.01)
    """The loss."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(
                f"reward_model.validation_fraction = {self.validation_fraction}: expected a share "
                "between 0 and 1."
            )
        if not 0 <= self.test_fraction < 1 - self.validation_fraction:
            raise ConfigError(
                f"reward_model.test_fraction = {self.test_fraction}: expected 0 or more, and with "
                f"reward_model.validation_fraction = {self.validation_fraction} less than 1."
            )


@dataclass(frozen=True)
class ChoiceConfig:
    """Which update of PPO is kept, and when it stops."""

    by: Literal["proxy", "gold"] = "proxy"
    """Validation score that chooses the update. gold is what nobody has where gold is hidden."""
    kl_budget: float | None = None
    """Only updates within this KL to PPO's start (nats per response) may be chosen; None: any."""
    stop_at_overoptimisation: bool = False
    """End PPO once gold falls on validation while proxy rises. It looks at gold, too."""
    patience: int = 2
    """Evaluations behind the best gold after which that is believed."""

    def __post_init__(self) -> None:
        check_choices(self, "choice")
        if self.patience < 1:
            raise ConfigError(f"choice.patience = {self.patience}: expected at least 1.")
        if self.kl_budget is not None and not self.kl_budget > 0:
            raise ConfigError(f"choice.kl_budget = {self.kl_budget}: expected more than 0.")


@dataclass(frozen=True)
class PipelineConfig:
    """From demonstrations and preferences to a policy: SFT, samples, reward model, PPO."""

    algorithm: Literal["pipeline"] = "pipeline"
    """Always pipeline; it tells recipes apart."""
    name: str | None = None
    """Name of the folder; None is <variant>-s<seed>."""
    variant: str | None = None
    """The same for all seeds of one setting; None is pipeline-<task>."""
    seed: int = 0
    """Seed of everything that is drawn."""
    rounds: int = 1
    """Times that samples, preferences, reward model and PPO follow each other."""
    task: TaskConfig = TaskConfig()
    """The instructions."""
    policy: PolicyConfig = PolicyConfig()
    """The model, and which weights train in every stage."""
    gold: dict[str, bool | float | str | RewardSpec] = field(default_factory=dict)
    """The true reward, as `rewards` of a training run: it measures, and the simulated mentor goes
    by it; no policy is trained on it. None takes the task's own."""
    sft: SFTConfig = SFTConfig()
    """The first stage; max_steps: 0 keeps the model as it is."""
    samples: SamplesConfig = SamplesConfig()
    """The responses of a round."""
    mentor: MentorConfig = MentorConfig()
    """Who prefers."""
    reward_model: LearnedRewardConfig = LearnedRewardConfig()
    """The reward model of a round."""
    ppo: PPOConfig = PPOConfig(eval_every=4)
    """PPO of a round, against its reward model."""
    choice: ChoiceConfig = ChoiceConfig()
    """Which update of PPO is kept."""
    best_of: int = 8
    """Responses of the SFT policy from which the reward model takes the best, at the end."""
    eval: EvalConfig = EvalConfig()
    """How every policy is measured."""
    tracking: TrackingConfig = TrackingConfig()
    """Weights & Biases; the group is that of the pipeline."""
    output: OutputConfig = OutputConfig()
    """Where the folder goes."""

    def __post_init__(self) -> None:
        check_choices(self)
        refuse_secrets(self.to_dict())
        for key in ("name", "variant"):
            check_name(key, getattr(self, key))
        for key, least in (("seed", 0), ("rounds", 1), ("best_of", 2)):
            if getattr(self, key) < least:
                raise ConfigError(f"{key} = {getattr(self, key)}: expected at least {least}.")
        if self.task.env != "instruction":
            raise ConfigError(
                f"task.env = {self.task.env!r}: preferences are between single answers; expected "
                "'instruction'."
            )
        if self.sft.head != "text":
            raise ConfigError(
                f"sft.head = {self.sft.head!r}: mentors, reward models and PPO need a policy that "
                "writes; expected 'text'."
            )
        if not self.ppo.eval_every:
            raise ConfigError(
                "ppo.eval_every = 0: proxy and gold are measured on validation instructions as PPO "
                "goes on; expected at least 1."
            )
        if not self.ppo.kl_coef:
            raise ConfigError(
                "ppo.kl_coef = 0: without a reference the distance from PPO's start is not "
                "measured, against which proxy and gold are shown; expected more than 0."
            )
        if self.eval.task is not None or self.eval.samples > 1:
            raise ConfigError(
                "eval.task and eval.samples are not for pipelines: every stage gives one response "
                "to each instruction of task.test_split; leave them out."
            )

    @property
    def resolved_variant(self) -> str:
        """The variant, derived from the task when none was given."""
        return self.variant or f"pipeline-{name_of_task(self.task.name)}"

    @property
    def folder(self) -> Path:
        """The pipeline's own folder, in which the stages have theirs."""
        return Path(self.output.dir) / (self.name or f"{self.resolved_variant}-s{self.seed}")

    def resolved(self) -> PipelineConfig:
        """The same pipeline with the seed in the model written out."""
        model = self.policy.model.replace("{seed}", str(self.seed))
        return replace(self, policy=replace(self.policy, model=model))

    @property
    def gold_reward(self) -> dict[str, Any]:
        """The true reward under its one name, as ``rewards`` of a run."""
        parts = reward_value(self.gold or self.task.own_rewards())
        return {GOLD: {"use": "weighted", "weight": 1.0, "options": {"parts": parts}}}

    def both_rewards(self, reward_model: Path, *, trained_on: str = PROXY) -> dict[str, Any]:
        """The learned reward and the true one; the one that is not named has weight 0.

        Args:
            reward_model: Run folder of the reward model.
            trained_on: ``proxy`` or ``gold``: what the total is.
        """
        options = {"path": str(reward_model), "normalise": True, "device": self.policy.device}
        both = {PROXY: {"use": "learned", "weight": 1.0, "options": options}, **self.gold_reward}
        return {k: {**v, "weight": float(k == trained_on)} for k, v in both.items()}

    @property
    def greedy(self) -> Sampling:
        """How every stage is measured."""
        return self._train("none", "sft", self.policy.model).eval_sampling

    @property
    def sampled(self) -> Sampling:
        """How responses are drawn for mentors, and for the best of several."""
        tokens = self.ppo.response_length
        temperature = self.samples.temperature
        return Sampling(tokens, temperature, stop_strings=self.ppo.stop_strings)

    def sft_run(self) -> TrainConfig:
        """The first stage."""
        return replace(
            self._train("sft", "sft", self.policy.model),
            sft=self.sft,
            rewards=_specs(self.gold_reward),
        )

    def reward_run(self, number: int, data: Path, sft: str) -> RewardModelConfig:
        """The reward model of a round.

        Args:
            number: The round, from 1.
            data: Its preferences, with those of the rounds before.
            sft: Folder of the SFT policy.
        """
        section = self.reward_model
        shares = ("validation_fraction", "test_fraction")
        fractions = {name: getattr(section, name) for name in shares}
        return RewardModelConfig(
            name=f"reward-model-{number}",
            variant=f"{self.resolved_variant}-reward-model-{number}",
            seed=self.seed,
            task=PreferenceTask(str(data), fractions),
            policy=replace(self.policy, model=section.model or sft),
            fit=section.fit,
            preference=section.preference,
            tracking=self.stage_tracking,
            output=RewardOutputConfig(str(self.folder), self.output.hang_s),
        )

    def ppo_run(self, number: int, start: str, reward_model: Path) -> TrainConfig:
        """PPO of a round.

        Args:
            number: The round, from 1.
            start: Folder of the policy that it starts from.
            reward_model: Run folder of the round's reward model.
        """
        return replace(
            self._train(f"ppo-{number}", "ppo", start),
            ppo=self.ppo,
            rewards=_specs(self.both_rewards(reward_model)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``config.yaml``."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        return values | {"gold": plain(reward_value(self.gold))}

    @property
    def stage_tracking(self) -> TrackingConfig:
        """Where every stage is mirrored to: one group, named after the pipeline."""
        return replace(self.tracking, group=self.tracking.group or self.folder.name)

    def _train(self, name: str, algorithm: Literal["ppo", "sft"], model: str) -> TrainConfig:
        # SFT has no response length of its own; all stages answer as long as PPO's policy does.
        tokens = self.eval.max_new_tokens or self.ppo.response_length
        return TrainConfig(
            name=name,
            variant=f"{self.resolved_variant}-{name}",
            algorithm=algorithm,
            seed=self.seed,
            task=self.task,
            policy=replace(self.policy, model=model),
            eval=replace(self.eval, max_new_tokens=tokens),
            tracking=self.stage_tracking,
            output=replace(self.output, dir=str(self.folder), export_policy=True),
        )


def _specs(rewards: dict[str, Any]) -> dict[str, bool | float | str | RewardSpec]:
    return {name: RewardSpec(**spec) for name, spec in rewards.items()}


def refuse_changed(config: PipelineConfig) -> None:
    """Checks that the pipeline in the folder can go on under ``config``.

    Raises:
        ConfigError: A key differs that would make it another one. ``rounds`` may grow, and what
            no stage has used so far may change.
    """
    unused = [key for key, made in _UNTIL.items() if not any(config.folder.glob(made))]
    may_change = (*_RESUMABLE, *unused)
    before, now = flatten(read_config(config.folder)), flatten(config.to_dict())
    changed = changes(before, now, lambda key: is_among(key, may_change))
    if changed:
        raise ConfigError(
            f"{config.folder} was started with other settings ({'; '.join(changed)}). Go on with "
            "the settings it had, or give the new pipeline another name. These may change: "
            f"{', '.join(k.rstrip('.') for k in may_change)}."
        )
