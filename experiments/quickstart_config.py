"""Settings of the quickstart: plain frozen dataclasses, no torch and no TRL."""

from __future__ import annotations

from dataclasses import dataclass, replace

from instructrec.errors import ConfigError
from instructrec.experiments.config import OutputConfig, TaskConfig, TrainConfig
from instructrec.experiments.tracking import TrackingConfig
from instructrec.policies.config import PolicyConfig
from instructrec.rl.config import PPOConfig, SFTConfig


@dataclass(frozen=True)
class QuickstartEval:
    """How much of the test split each stage is measured on."""

    limit: int = 400
    """Held-out instructions that each stage answers with greedy decoding."""
    sampled_limit: int = 100
    """Of these, how many are answered by sampling as well."""
    samples: int = 8
    """Sampled responses per instruction: pass@samples and the mean come from them."""
    batch_size: int = 100
    """Responses decoded together."""
    validation_limit: int = 100
    """Validation instructions by which the best SFT is chosen."""

    def __post_init__(self) -> None:
        for name in ("limit", "sampled_limit", "samples", "batch_size", "validation_limit"):
            if getattr(self, name) < 1:
                raise ConfigError(f"eval.{name} = {getattr(self, name)}: expected at least 1.")


@dataclass(frozen=True)
class QuickstartConfig:
    """The same start, the same demonstrations, four policies: base, short SFT, best SFT, PPO."""

    seed: int = 0
    """Seed of everything that is drawn."""
    name: str | None = None
    """Name of the run folder; None is quickstart-<the next free number>."""
    task: TaskConfig = TaskConfig()
    """The instructions."""
    policy: PolicyConfig = PolicyConfig(train="last_layers", num_layers=15)
    """The model and which of its weights train, in every stage."""
    sft: SFTConfig = SFTConfig(demonstrations=50, max_steps=16, batch_size=16, learning_rate=1e-4)
    """The short SFT, from which PPO starts."""
    best_sft: SFTConfig = SFTConfig(
        demonstrations=50,
        max_steps=64,
        batch_size=16,
        learning_rate=1e-4,
        validation_demonstrations=50,
        eval_every=8,
        best_by="reward",
        early_stopping_patience=3,
    )
    """The best SFT on the same demonstrations: stopped on exact match of validation responses."""
    ppo: PPOConfig = PPOConfig(
        num_updates=32,
        episodes_per_update=128,
        num_mini_batches=4,
        num_ppo_epochs=1,
        learning_rate=1.2e-4,
        lr_schedule="linear",
        warmup_steps=16,
        entropy_coef=0.03,
        prompt_filter="family",
        response_length=8,
        kl_coef=0.0,
    )
    """PPO on exact match, from the short SFT."""
    eval: QuickstartEval = QuickstartEval()
    """How each stage is measured."""
    tracking: TrackingConfig = TrackingConfig()
    """Weights & Biases."""
    output: OutputConfig = OutputConfig()
    """Where the run folders go."""

    def __post_init__(self) -> None:
        if self.best_sft.demonstrations != self.sft.demonstrations:
            raise ConfigError(
                f"best_sft.demonstrations = {self.best_sft.demonstrations}, sft.demonstrations = "
                f"{self.sft.demonstrations}: both must be the same, or the comparison is unfair."
            )

    def stage(
        self, name: str, directory: str, model: str, section: PPOConfig | SFTConfig | None = None
    ) -> TrainConfig:
        """The training run of one stage.

        Args:
            name: Folder of the stage inside ``directory``; ``ppo`` and ``raft`` are the algorithms
                of that name, all others are SFT.
            directory: The quickstart's own run folder.
            model: Model or folder that the stage starts from.
            section: Settings of the algorithm; None takes those of this configuration.
        """
        algorithm = name if name in ("ppo", "raft") else "sft"
        own = {"ppo": self.ppo, "sft": self.sft, "sft-best": self.best_sft}
        base = TrainConfig(
            name=name,
            variant=f"quickstart-{name}",
            seed=self.seed,
            task=self.task,
            policy=replace(self.policy, model=model),
            tracking=self.tracking,
            output=replace(self.output, dir=directory),
        )
        key = "sft" if algorithm == "sft" else "ppo"
        settings = {"algorithm": algorithm, key: section or own[name]}
        return replace(base, **settings)  # type: ignore[arg-type]
