"""``--decoding`` and ``--n`` of ``instructrec evaluate``: other words for temperature and samples.

They become those two keys before there is a configuration, so that names of files, what counts as
the same evaluation, and what is resumed know one spelling only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from instructrec.errors import ConfigError
from instructrec.experiments import command_line
from instructrec.experiments.config import EvaluateConfig
from instructrec.experiments.recorded import is_recorded

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_SAMPLING_TEMPERATURE = 1.0
"""The distribution that the policy has."""


def add_decoding(parser: ArgumentParser) -> None:
    """Adds ``--decoding`` and ``--n``."""
    parser.add_argument(
        "--decoding",
        type=Literal["greedy", "sample"] | None,
        default=None,
        help="greedy: temperature 0; sample: temperature 1, unless --temperature is given.",
    )
    parser.add_argument(
        "--n", type=int | None, default=None, help="Another name of --samples; needs sampling."
    )


def evaluate_config(values: Namespace, arguments: Sequence[str]) -> EvaluateConfig:
    """Makes the configuration of an evaluation.

    Args:
        values: What was parsed.
        arguments: The words it was parsed from: they tell a temperature of 0 that was asked for
            beside --decoding from one of a file, over which the command line wins.

    Raises:
        ConfigError: Two of the settings contradict each other.
    """
    settings = values.clone()
    settings["samples"] = samples = _samples(values)
    settings["temperature"] = temperature = _temperature(values, arguments)
    # Sampling is not implied by several samples: a mean at temperature 1 is another number than
    # the greedy one that the same command without --n gives, and should be asked for by name.
    is_greedy = temperature == 0 or (temperature is None and not is_recorded(values.policy))
    if is_greedy and (samples or 1) > 1:
        advice = "give --decoding sample instead" if values.decoding else "add --decoding sample"
        raise ConfigError(
            f"samples = {samples} with greedy decoding (temperature = 0), which gives the same "
            f"response every time: {advice} (temperature 1; --temperature sets another), or leave "
            "--n and --samples out."
        )
    config: EvaluateConfig = command_line.as_dataclass(EvaluateConfig, settings)
    return config


def _temperature(values: Namespace, arguments: Sequence[str]) -> float | None:
    """What was asked for, in either word; None where neither was given."""
    temperature: float | None = values.temperature
    if values.decoding == "greedy":
        if temperature:
            raise ConfigError(
                f"decoding = 'greedy' with temperature = {temperature:g}: greedy decoding is "
                "temperature 0. Leave one of them out, or give --decoding sample."
            )
        return 0.0
    if values.decoding == "sample":
        if any(word.partition("=")[0] == "--temperature" for word in arguments) and not temperature:
            raise ConfigError(
                "decoding = 'sample' with temperature = 0: temperature 0 is greedy decoding. "
                "Leave --temperature out (sampling then has temperature 1), or give one above 0."
            )
        return temperature or _SAMPLING_TEMPERATURE
    return temperature


def _samples(values: Namespace) -> int | None:
    samples: int | None = values.samples
    if values.n is None:
        return samples
    if samples not in (None, values.n):
        raise ConfigError(
            f"n = {values.n} with samples = {samples}: both say how many responses an instruction "
            "gets. Give one of them."
        )
    number: int = values.n
    return number
