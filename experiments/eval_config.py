"""How the policy of a training run is evaluated: plain frozen dataclasses, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from instructrec.errors import ConfigError
from instructrec.rewards.hf_metric import check_corpus_names


class Draws(Protocol):
    """What of a configuration says how responses are drawn."""

    @property
    def limit(self) -> int | None:
        """Most instructions."""

    @property
    def samples(self) -> int | None:
        """Responses per instruction."""

    @property
    def temperature(self) -> float | None:
        """0 is greedy decoding; None is not known yet."""

    @property
    def max_new_tokens(self) -> int | None:
        """Most tokens in one response."""

    @property
    def batch_size(self) -> int:
        """Responses decoded together."""


def check_draws(prefix: str, draws: Draws) -> None:
    """Refuses numbers of responses that make no sense, before anything is spent.

    Args:
        prefix: What the keys begin with.
        draws: The configuration that has them.

    Raises:
        ConfigError: A number is too small, or several greedy samples are asked for.
    """
    for name in ("limit", "samples", "max_new_tokens", "batch_size"):
        value = getattr(draws, name)
        if value is not None and value < 1:
            raise ConfigError(f"{prefix}{name} = {value}: expected at least 1.")
    if draws.temperature == 0 and (draws.samples or 1) > 1:
        raise ConfigError(
            f"{prefix}samples = {draws.samples} with {prefix}temperature = 0: greedy decoding "
            f"gives the same response every time; set {prefix}temperature above 0, or one sample."
        )


@dataclass(frozen=True)
class EvalConfig:
    """How policies are evaluated: on the validation split in training, on the test split after."""

    task: str | None = None
    """Another task for the final evaluation; None takes the task of the training."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of that other task."""
    limit: int | None = None
    """Most instructions of the final evaluation; None takes the whole split."""
    validation_limit: int = 128
    """Most instructions of an evaluation during training (ppo.eval_every says how often)."""
    before: bool = False
    """Measure the start like the end, so that the end can say whether it is better."""
    bounds: bool = True
    """Score oracle, random and empty answers to the test instructions as well, without a model."""
    keep_tasks: tuple[str, ...] = ()
    """Old tasks, data files or run folders that are measured before and after, to see what was
    forgotten; a run folder stands for its task, options and rewards."""
    samples: int = 1
    """Responses per instruction."""
    temperature: float = 0.0
    """Softmax temperature; 0 is greedy decoding."""
    max_new_tokens: int | None = None
    """Most tokens in one response; None takes ppo.response_length."""
    top_p: float = 1.0
    """Nucleus: smallest set of tokens with this much probability."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    batch_size: int = 64
    """Responses decoded together."""
    corpus_metrics: tuple[str, ...] = ()
    """Metrics over all responses of the final evaluation: bleu, chrf, exact_match, rouge."""
    corpus_references: str = "reference"
    """Column with the expected answers of the corpus metrics, one text or several each."""

    def __post_init__(self) -> None:
        check_corpus_names(self.corpus_metrics)
        check_draws("eval.", self)
        if self.validation_limit < 1:
            raise ConfigError(
                f"eval.validation_limit = {self.validation_limit}: expected at least 1."
            )
        if self.options and self.task is None:
            raise ConfigError(
                "eval.options were given without eval.task: options of the training task belong "
                "under task.options."
            )
