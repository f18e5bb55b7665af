"""What a training run is: plain frozen dataclasses, no torch and no TRL.

The string under each field is its help text on the command line. A resolved configuration is
written to ``config.yaml`` of the run folder and reads back as the same configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from instructrec.choices import check_choices
from instructrec.errors import ConfigError
from instructrec.experiments.changed_settings import changes, flatten, is_among
from instructrec.experiments.eval_config import EvalConfig, check_draws
from instructrec.experiments.folder_names import check_name, name_of_task
from instructrec.experiments.playing import EnvName
from instructrec.experiments.task_config import TaskConfig
from instructrec.experiments.tracking import TrackingConfig
from instructrec.experiments.yaml_files import read_config
from instructrec.policies.config import LAST_LAYERS, EndpointConfig, PolicyConfig, Sampling
from instructrec.redaction import refuse_secrets
from instructrec.rewards.hf_metric import check_corpus_names
from instructrec.rewards.parts import RewardSpec
from instructrec.rl.config import MAY_CHANGE, DPOConfig, PPOConfig, SFTConfig, check_raft
from instructrec.rl.reward_config import MAY_CHANGE as FIT_MAY_CHANGE

RESUMABLE = (
    *(f"ppo.{name}" for name in MAY_CHANGE if name != "monitors"),
    *(f"{section}.{name}" for section in ("sft", "dpo") for name in FIT_MAY_CHANGE),
    *("ppo.monitors.", "tracking.", "output.", "eval.before", "eval.bounds"),
    *("eval.corpus_metrics", "eval.corpus_references"),
)
"""Keys (or, ending in a dot, groups) that may change between a run and its continuation."""
RESUMABLE_OF_REWARDS = (
    *("timeout", "isolation", "workers", "memory_mb", "environment", "cache", "on_error"),
)
"""Settings of a reward (in its long form) that may change, too: its scores stay the same."""


_SECTIONS = ("ppo", "sft", "dpo")


@dataclass(frozen=True)
class PlaceConfig:
    """Where the run is written."""

    dir: str = "runs"
    """Folder of the run folders."""


@dataclass(frozen=True)
class OutputConfig(PlaceConfig):
    """Where the run is written and how much of it."""

    samples_per_update: int = 8
    """Responses of each update that samples.jsonl keeps; 0 keeps none."""
    export_policy: bool = True
    """Write the trained policy to policy/, a plain Hugging Face folder."""
    hang_s: float = 3600.0
    """Seconds without progress after which stacks are written; after twice as many the run ends
    (exit code 10). 0: never."""

    def __post_init__(self) -> None:
        if not self.hang_s >= 0:
            raise ConfigError(f"output.hang_s = {self.hang_s}: expected 0 or more.")


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    name: str | None = None
    """Name of the run folder; None is <variant>-s<seed>."""
    variant: str | None = None
    """What is compared: the same for all seeds of one setting; None is <algorithm>-<task>."""
    algorithm: Literal["ppo", "raft", "sft", "dpo"] = "ppo"
    """ppo, raft (imitate the best of several responses), sft (demonstrations), dpo (pairs)."""
    seed: int = 0
    """Seed of everything that is drawn."""
    task: TaskConfig = TaskConfig()
    """The instructions."""
    policy: PolicyConfig = PolicyConfig()
    """The model."""
    rewards: dict[str, bool | float | str | RewardSpec] = field(default_factory=dict)
    """Name -> weight of a registered reward, module:attr or file.py:attr, or all of a long form;
    none takes the task's own, which is exact_match for most."""
    ppo: PPOConfig = PPOConfig()
    """Settings of PPO, and of raft."""
    sft: SFTConfig = SFTConfig()
    """Settings of supervised fine-tuning."""
    dpo: DPOConfig = DPOConfig()
    """Settings of direct preference optimisation."""
    eval: EvalConfig = EvalConfig()
    """Evaluation."""
    tracking: TrackingConfig = TrackingConfig()
    """Weights & Biases."""
    output: OutputConfig = OutputConfig()
    """Run folder."""

    def __post_init__(self) -> None:
        check_choices(self)
        for key in ("name", "variant"):
            check_name(key, getattr(self, key))
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed}: expected 0 or more.")
        if self.supervised is not None and self.task.env == "refine":
            raise ConfigError(
                f"task.env = {self.task.env!r} given, but algorithm = {self.algorithm!r} plays no "
                "episodes of several tries: remove the key, or set algorithm to 'ppo'."
            )
        labels = self.has_labels
        if (self.algorithm == "dpo" or labels) and self.task.env != "instruction":
            raise ConfigError(
                f"task.env = {self.task.env!r} given, but algorithm = 'dpo' and sft.head = "
                "'labels' learn from single answers: remove the key."
            )
        if self.policy.train == "head" and not labels:
            raise ConfigError(
                "policy.train = 'head': only a head of labels can train alone. Set algorithm: sft "
                "with sft.head: labels, or policy.train to 'full', 'last_layers' or 'lora'."
            )
        for other in _SECTIONS:
            if other != self.section:
                self._refuse_section(other)
        refuse_secrets(self.to_dict())
        if self.algorithm == "raft":
            check_raft(self.ppo)

    @property
    def section(self) -> str:
        """Where the settings of the algorithm stand."""
        return "ppo" if self.algorithm == "raft" else self.algorithm

    @property
    def supervised(self) -> SFTConfig | DPOConfig | None:
        """The settings of an algorithm that learns from given answers; None for the others."""
        if self.algorithm == "dpo":
            return self.dpo
        return self.sft if self.algorithm == "sft" else None

    @property
    def job_type(self) -> str:
        """What kind of run it is, as in ``run.json``."""
        return "train" if self.supervised is None else self.algorithm

    @property
    def has_labels(self) -> bool:
        """Whether a head of labels is trained."""
        return self.algorithm == "sft" and self.sft.head == "labels"

    @property
    def steps(self) -> int:
        """Most optimizer steps of supervised training, or updates."""
        return self.ppo.num_updates if self.supervised is None else self.supervised.max_steps

    def _refuse_section(self, other: str) -> None:
        section = getattr(self, other)
        changed = [
            f"{other}.{f.name}"
            for f in dataclasses.fields(section)
            if getattr(section, f.name) != f.default
        ]
        if changed:
            raise ConfigError(
                f"{', '.join(changed)} given, but algorithm = {self.algorithm!r} does not use "
                f"it: remove the key, or set algorithm to {other!r}."
            )

    @property
    def resolved_variant(self) -> str:
        """The variant, derived from algorithm, task and environment when none was given."""
        env = "" if self.task.env == "instruction" else f"-{self.task.env}"
        return self.variant or f"{self.algorithm}-{name_of_task(self.task.name)}{env}"

    @property
    def resolved_name(self) -> str:
        """Name of the run folder."""
        return self.name or f"{self.resolved_variant}-s{self.seed}"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output.dir) / self.resolved_name

    @property
    def tags(self) -> list[str]:
        """What trackers show beside the name."""
        return [self.algorithm, self.policy.model, *self.reward_value()]

    @property
    def samples_kept(self) -> int:
        """Responses of an update that samples.jsonl keeps."""
        return self.output.samples_per_update

    @property
    def hang_s(self) -> float:
        """See ``output.hang_s``."""
        return self.output.hang_s

    @property
    def eval_sampling(self) -> Sampling:
        """How evaluations draw responses."""
        return Sampling(
            max_new_tokens=self.eval.max_new_tokens or self.ppo.response_length,
            temperature=self.eval.temperature,
            top_p=self.eval.top_p,
            top_k=self.eval.top_k,
            stop_strings=self.ppo.stop_strings,
        )

    def resolved(self) -> TrainConfig:
        """The same run with variant, name and rewards, and the seed in the model, written out."""
        model = self.policy.model.replace("{seed}", str(self.seed))
        return dataclasses.replace(
            self,
            variant=self.resolved_variant,
            name=self.resolved_name,
            policy=dataclasses.replace(self.policy, model=model),
            rewards=self.rewards or self.task.own_rewards(),
        )

    def reward_value(self) -> dict[str, Any]:
        """The mapping that ``make_rewards`` takes: plain numbers, strings and dicts."""
        return reward_value(self.rewards)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``config.yaml``; settings of the algorithm not used are left out."""
        values = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        values["rewards"] = self.reward_value()
        return {k: v for k, v in values.items() if k == self.section or k not in _SECTIONS}


def reward_value(rewards: Mapping[str, bool | float | str | RewardSpec]) -> dict[str, Any]:
    """The mapping that ``make_rewards`` takes: plain numbers, strings and dicts."""
    return {name: _reward_value(spec) for name, spec in rewards.items()}


def _reward_value(spec: bool | float | str | RewardSpec) -> Any:
    if not isinstance(spec, RewardSpec):
        return spec
    given = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    default = dataclasses.asdict(RewardSpec())
    return {
        key: _plain(value)
        for key, value in given.items()
        if key == "weight" or value != default[key]
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def keep_chosen(config: TrainConfig, folder: Path) -> TrainConfig:
    """Takes over what the run chose at its start: the micro-batch, the steps of its epochs."""
    saved = read_config(folder)
    if config.supervised is not None and config.supervised.epochs is not None:
        steps = (saved.get(config.section) or {}).get("max_steps", config.steps)
        resolved: dict[str, Any] = {
            config.section: dataclasses.replace(config.supervised, max_steps=steps)
        }
        return dataclasses.replace(config, **resolved)
    chosen = saved.get("ppo") or {}
    if config.ppo.micro_batch_size is not None or chosen.get("micro_batch_size") is None:
        return config
    taken = {"micro_batch_size": chosen["micro_batch_size"]}
    if config.ppo.micro_batch_tokens is None:
        taken["micro_batch_tokens"] = chosen.get("micro_batch_tokens")
    return dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, **taken))


def refuse_changed(config: TrainConfig, folder: Path, allow_change: Collection[str] = ()) -> None:
    """Checks that a run can be continued under ``config``.

    Args:
        config: The run now.
        folder: Its folder.
        allow_change: Keys that may differ all the same.

    Raises:
        ConfigError: A key differs from the folder's ``config.yaml`` that would make the
            continued run another run than the one that was started.
    """
    before = flatten(read_config(folder))
    now = flatten(config.resolved().to_dict())
    rate = "ppo.critic_learning_rate"
    if before.get(rate) is not None and rate in now:  # its default was once written as a number
        now[rate] = config.ppo.critic_rate
    layers = "policy.num_layers"
    if before.get(layers) == LAST_LAYERS and now.get(layers) is None:  # its default, likewise
        now[layers] = LAST_LAYERS
    changed = changes(before, now, lambda key: _may_change(key) or key in allow_change)
    if changed:
        raise ConfigError(
            f"{folder} was started with other settings ({'; '.join(changed)}). Continue it with "
            "the settings it had, give the new run another name, or name the keys to go on all the "
            "same: --allow_change KEY. These may change at any time: "
            f"{', '.join(k.rstrip('.') for k in RESUMABLE)}, and of each reward "
            f"{', '.join(RESUMABLE_OF_REWARDS)}."
        )


def _may_change(key: str) -> bool:
    group, _, rest = key.partition(".")
    if group == "rewards" and rest.partition(".")[2] in RESUMABLE_OF_REWARDS:
        return True
    return is_among(key, RESUMABLE)


@dataclass(frozen=True)
class EvaluateConfig:
    """One evaluation of one policy (``instructrec evaluate``)."""

    name: str | None = None
    """Name of the run folder; None derives it from policy, task and decoding."""
    task: str | None = None
    """Task; None takes that of the policy's run or file of responses, else closed_answers."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the task."""
    split: str | None = None
    """Split; None takes that of a file of responses, else the test split."""
    env: EnvName | None = None
    """One answer, several tries (refine), chat or tool; None: as the policy's run, else one."""
    max_turns: int | None = None
    """Most answers in one episode of several; None takes that of the policy's run, else 3."""
    env_options: dict[str, Any] | None = None
    """More options of env chat and tool; None takes those of the policy's run."""
    rewards: dict[str, bool | float | str | RewardSpec] = field(default_factory=dict)
    """What is measured; none takes those of the policy's run folder, else the task's own."""
    limit: int | None = None
    """Most instructions; None takes the whole split, or those that a file of responses has."""
    samples: int | None = None
    """Responses per instruction; None takes 1, or all that a file of responses has."""
    temperature: float | None = None
    """Softmax temperature; 0 is greedy. None: as a file's responses were drawn, else 0."""
    top_p: float | None = None
    """Nucleus: smallest set of tokens with this probability; None: as in a file, else 1 (all)."""
    top_k: int | None = None
    """Keep the k likeliest tokens; 0 keeps all. None: as in a file of responses, else 0."""
    max_new_tokens: int | None = None
    """Most tokens in one response; None takes that of the policy's run folder, else 64."""
    batch_size: int = 64
    """Responses decoded together."""
    bounds: bool = True
    """Measure oracle, random and empty answers on the same instructions as well."""
    corpus_metrics: tuple[str, ...] | None = None
    """Metrics over all responses: bleu, chrf, exact_match, rouge; None takes those of the run."""
    corpus_references: str | None = None
    """Column with their expected answers; None takes that of the run, else reference."""
    robustness_kinds: tuple[str, ...] | None = None
    """Wordings of --robustness: built in, module:attr, file.py:attr; None: all built-in ones."""
    seed: int = 0
    """Seed of the sampling."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, ..."""
    system_prompt: str | None = None
    """System message; None takes that of the policy's run folder, else none."""
    endpoint: EndpointConfig = EndpointConfig()
    """The model, where the policy is the address of a server."""
    output: PlaceConfig = PlaceConfig()
    """Where the run folder goes."""
    tracking: TrackingConfig = TrackingConfig(mode="disabled")
    """Where it is mirrored to; nowhere unless tracking.mode is given."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_name("name", self.name)
        refuse_secrets(_plain(self))
        check_corpus_names(self.corpus_metrics or ())
        check_draws("", self)
        if self.max_turns is not None and self.max_turns < 1:
            raise ConfigError(f"max_turns = {self.max_turns}: expected 1 or more.")
