"""What the training of a reward model is: plain frozen dataclasses, no torch and no TRL."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from instructrec.choices import check_choices
from instructrec.errors import ConfigError
from instructrec.experiments.changed_settings import changes, flatten, is_among
from instructrec.experiments.folder_names import check_name, name_of_task
from instructrec.experiments.jsonl import plain
from instructrec.experiments.preference_data import PreferenceTask
from instructrec.experiments.tracking import TrackingConfig
from instructrec.experiments.yaml_files import read_config
from instructrec.policies.config import PolicyConfig
from instructrec.redaction import refuse_secrets
from instructrec.rl.reward_config import MAY_CHANGE, AlignmentConfig, FitConfig, PreferenceConfig

RESUMABLE = (*(f"fit.{name}" for name in MAY_CHANGE), "tracking.", "output.")
"""Keys (or, ending in a dot, groups) that may change between a run and its continuation."""


@dataclass(frozen=True)
class RewardOutputConfig:
    """Where the run is written."""

    dir: str = "runs"
    """Folder of the run folders."""
    hang_s: float = 3600.0
    """Seconds without progress after which stacks are written; after twice as many the run ends
    (exit code 10). 0: never."""

    def __post_init__(self) -> None:
        if not self.hang_s >= 0:
            raise ConfigError(f"output.hang_s = {self.hang_s}: expected 0 or more.")


@dataclass(frozen=True)
class RewardModelConfig:
    """One training of a reward model."""

    name: str | None = None
    """Name of the run folder; None is <variant>-s<seed>."""
    variant: str | None = None
    """What is compared: the same for all seeds of one setting; None is <algorithm>-<task>."""
    algorithm: Literal["reward_model", "alignment"] = "reward_model"
    """reward_model (a score from preferences), or alignment (which output belongs to which
    instruction, from pairs of the two)."""
    seed: int = 0
    """Seed of everything that is drawn."""
    task: PreferenceTask = PreferenceTask()
    """The preferences, or instructions with outputs."""
    policy: PolicyConfig = PolicyConfig()
    """The model that it starts from: a policy's trunk, another decoder, a reward model or an
    encoder; and which of its weights train."""
    fit: FitConfig = FitConfig()
    """How the weights are fitted."""
    preference: PreferenceConfig = PreferenceConfig()
    """The loss of algorithm reward_model."""
    alignment: AlignmentConfig = AlignmentConfig()
    """The loss of algorithm alignment."""
    tracking: TrackingConfig = TrackingConfig()
    """Weights & Biases."""
    output: RewardOutputConfig = RewardOutputConfig()
    """Run folder."""

    def __post_init__(self) -> None:
        check_choices(self)
        refuse_secrets(dataclasses.asdict(self))
        for key in ("name", "variant"):
            check_name(key, getattr(self, key))
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed}: expected 0 or more.")
        other = self._other
        if getattr(self, other) != type(getattr(self, other))():
            raise ConfigError(
                f"{other}.* given, but algorithm = {self.algorithm!r} does not use it: remove it."
            )
        micro = self.fit.micro_batch_size
        if self.algorithm == "alignment":
            if self.fit.batch_size < 2:
                raise ConfigError("fit.batch_size = 1: alignment tells outputs from one another.")
            if micro is not None and micro != self.fit.batch_size:
                raise ConfigError(
                    f"fit.micro_batch_size = {micro}: alignment compares all outputs of a batch; "
                    "lower fit.batch_size instead."
                )

    @property
    def _other(self) -> str:
        """The section of the other algorithm."""
        return "alignment" if self.algorithm == "reward_model" else "preference"

    @property
    def job_type(self) -> str:
        """What kind of run it is, as in ``run.json``."""
        return "reward-model"

    @property
    def resolved_variant(self) -> str:
        """The variant, derived from algorithm and data when none was given."""
        task = name_of_task(self.task.name)
        return self.variant or f"{self.algorithm.replace('_', '-')}-{task or 'pairs'}"

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
        return [self.algorithm, self.policy.model]

    @property
    def samples_kept(self) -> int:
        """Responses of an update that samples.jsonl keeps: nothing is sampled."""
        return 0

    @property
    def hang_s(self) -> float:
        """See ``output.hang_s``."""
        return self.output.hang_s

    def resolved(self) -> RewardModelConfig:
        """The same run with variant, name and the seed in the model written out."""
        model = self.policy.model.replace("{seed}", str(self.seed))
        return dataclasses.replace(
            self,
            variant=self.resolved_variant,
            name=self.resolved_name,
            policy=dataclasses.replace(self.policy, model=model),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``config.yaml``; settings of the algorithm not used are left out."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        del values[self._other]
        return values


def refuse_changed(
    config: RewardModelConfig, folder: Path, allow_change: Collection[str] = ()
) -> None:
    """Checks that a run can be continued under ``config``.

    Args:
        config: The run now.
        folder: Its folder.
        allow_change: Keys that may differ all the same.

    Raises:
        ConfigError: A key differs that would make it another run.
    """
    before, now = flatten(read_config(folder)), flatten(config.resolved().to_dict())
    changed = changes(before, now, lambda key: is_among(key, RESUMABLE) or key in allow_change)
    if changed:
        raise ConfigError(
            f"{folder} was started with other settings ({'; '.join(changed)}). Continue it with "
            "the settings it had, give the new run another name, or name the keys to go on all the "
            "same: --allow_change KEY. These may change at any time: "
            f"{', '.join(k.rstrip('.') for k in RESUMABLE)}."
        )
