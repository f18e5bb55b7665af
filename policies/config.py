"""Which model answers, and how it samples: plain frozen dataclasses, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from instructrec.choices import check_choices
from instructrec.errors import ConfigError

LAST_LAYERS = 15
"""Layers that train with ``last_layers`` where nobody says how many: half of the embedded model."""


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (used when ``policy.train`` is ``lora``)."""

    r: int = 16
    """Rank of the adapters."""
    alpha: int = 32
    """Scale of the adapters: alpha / r."""
    dropout: float = 0.0
    """Dropout on the adapters' input in supervised fine-tuning; PPO and raft train without any."""
    target_modules: str = "all-linear"
    """Layers that get an adapter, as PEFT names them; comma-separated for several."""


@dataclass(frozen=True)
class PolicyConfig:
    """The policy: model, precision and which weights train."""

    model: str = "smollm2-135m"
    """smollm2-135m (embedded), tiny, a run folder, a Hugging Face folder or a hub id; {seed} in it
    becomes the run's seed."""
    revision: str | None = None
    """Revision of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision; auto takes bfloat16 where the hardware has it. Weights stay float32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, ..."""
    train: Literal["full", "last_layers", "lora", "head"] = "full"
    """Which weights train: all, the last num_layers, low-rank adapters, or (with sft.head: labels)
    nothing but the head."""
    num_layers: int | None = None
    """Trained layers, counted from the end: of last_layers (None: 15), or those that get adapters
    with lora (None: all)."""
    lora: LoraSettings = LoraSettings()
    """Settings of the adapters when train is lora."""
    quantization: Literal["nf4"] | None = None
    """Keep the base in 4 bits (nf4, QLoRA; needs lora and the extra `quantized`)."""
    system_prompt: str = ""
    """System message put before every instruction given as plain text (sent even when empty)."""

    def __post_init__(self) -> None:
        check_choices(self, "policy")
        if self.num_layers is not None and self.num_layers < 1:
            raise ConfigError(f"policy.num_layers = {self.num_layers}: expected at least 1.")
        if self.quantization is not None and self.train != "lora":
            raise ConfigError(
                f"policy.quantization = {self.quantization!r} with policy.train = {self.train!r}: "
                "weights in 4 bits cannot be trained. Set policy.train: lora, or "
                "policy.quantization: null."
            )


@dataclass(frozen=True)
class EndpointConfig:
    """A model behind a server with OpenAI's chat-completions interface."""

    model: str | None = None
    """Name of the model on that server."""
    api_key_env: str | None = None
    """Environment variable that holds the key; None sends none."""
    concurrency: int = 8
    """Calls at a time."""
    retries: int = 3
    """Repetitions of a call that failed for want of a connection, time or capacity."""
    timeout_s: float = 60.0
    """Seconds that one call may take."""
    deadline_s: float = 300.0
    """Seconds that an answer may take, repetitions included."""
    max_bytes: int = 4_000_000
    """Longest answer of the server."""
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the most tokens of an answer."""
    allow_http: bool = False
    """Let http leave this machine, in a network that you trust."""

    def __post_init__(self) -> None:
        check_choices(self, "endpoint")
        if self.concurrency < 1 or not self.deadline_s > 0:
            raise ConfigError(
                f"endpoint.concurrency = {self.concurrency}, endpoint.deadline_s = "
                f"{self.deadline_s}: expected at least 1, and more than 0 seconds."
            )


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn."""

    max_new_tokens: int = 64
    """Most tokens in one response."""
    temperature: float = 1.0
    """Softmax temperature; 0 is greedy decoding."""
    top_p: float = 1.0
    """Nucleus: smallest set of tokens with this much probability (evaluation only)."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all (evaluation only)."""
    stop_strings: tuple[str, ...] = ()
    """A response ends once it contains one of these strings."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens = {self.max_new_tokens}: expected at least 1.")
        if self.temperature < 0:
            raise ConfigError(f"temperature = {self.temperature}: expected 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p = {self.top_p}: expected a number in (0, 1].")
        if self.top_k < 0:
            raise ConfigError(f"top_k = {self.top_k}: expected 0 (all tokens) or more.")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0
