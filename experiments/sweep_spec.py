"""What a sweep is: a recipe, the keys that vary with their ranges, and how they are chosen.

Read from a YAML file::

    recipe: short_answers
    space:
      ppo.learning_rate: {log_uniform: [3.0e-5, 5.0e-4]}
      ppo.num_ppo_epochs: {integer: [1, 3]}
      ppo.advantage: {choice: [gae, batch_mean]}
    trials: 20

optuna is not needed here: a file is checked, and written for W&B, without it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from instructrec import metrics
from instructrec.choices import check_choices
from instructrec.errors import ConfigError, unknown_name
from instructrec.experiments.api import train_config
from instructrec.experiments.command_line import recipe_names
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.folder_names import FOLDER_NAME
from instructrec.experiments.yaml_files import read_yaml

Kind = Literal["log_uniform", "uniform", "integer", "choice"]
Scalar = bool | int | float | str | None
_OWN = ("name", "variant", "seed", "output.dir")
"""Settings that a sweep gives to its runs itself."""


@dataclass(frozen=True)
class Dimension:
    """One key that varies."""

    key: str
    """Dotted key of a recipe."""
    kind: Kind
    """How values are drawn: evenly by their logarithm, evenly, whole numbers, or of a list."""
    values: tuple[Scalar, ...]
    """Lowest and highest value (both included), or the choices."""


@dataclass(frozen=True)
class SweepSpec:
    """A search for better settings."""

    recipe: tuple[str, ...]
    """Recipes that the runs start from; later ones win."""
    space: tuple[Dimension, ...]
    """What varies."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys and their values, the same in all runs."""
    name: str = "sweep"
    """Name of the folder; taken from the file's name when it is not given."""
    trials: int = 20
    """Settings that are tried."""
    seeds: tuple[int, ...] = (0,)
    """Each setting is trained once with each of them; its score is the mean."""
    metric: str = "eval/total/mean"
    """What is optimised: a metric of the evaluations on the validation split in training."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """Whether more of it is better, or less."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How settings are chosen: from what did well so far, by chance, or all combinations."""
    sampler_seed: int = 0
    """Seed of the choices."""
    pruner: Literal["median", "halving", "none"] = "median"
    """Ends a run that is worse than the median at that update, or by successive halving."""
    pruner_startup: int = 4
    """First settings that the median pruner never prunes."""

    def config(self, values: Mapping[str, Any]) -> TrainConfig:
        """The run with these values of the space.

        Raises:
            ConfigError: A key is unknown, or a value is of no use to it.
        """
        return train_config(*self.recipe, settings={**self.settings, **values})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the file."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        found["space"] = {d.key: {d.kind: list(d.values)} for d in self.space}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


def read_spec(path: Path) -> SweepSpec:
    """Reads a sweep file; its runs are not looked at (see `check_runs`).

    Raises:
        ConfigError: The file is missing or no YAML mapping, a key is unknown, or a value is of no
            use; the message says which, and names the closest key.
    """
    if not path.exists():
        raise ConfigError(_missing(path))
    try:
        given = read_yaml(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"the sweep {path} cannot be read ({reason}): expected a YAML file with recipe, space "
            "and trials."
        ) from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path} holds a {type(given).__name__}: expected `key: value` settings.")
    return parse_spec(given, name=path.stem)


def _missing(path: Path) -> str:
    recipe = path.stem.replace("-", "_")
    is_recipe = path.parent == Path() and recipe in recipe_names()
    what = (
        f"{path} is a recipe, and no file of that name is here" if is_recipe else f"no file {path}"
    )
    return (
        f"sweep: {what}: expected a YAML file that says which recipe is searched and what varies, "
        f"e.g. with the two lines `recipe: {recipe if is_recipe else 'short_answers'}` and "
        "`space: {ppo.learning_rate: {log_uniform: [3.0e-5, 5.0e-4]}}`."
    )


def parse_spec(given: Mapping[str, Any], *, name: str = "sweep") -> SweepSpec:
    """Makes a sweep of plain values.

    Args:
        given: Keys of `SweepSpec`; ``space`` is a mapping such as ``{key: {uniform: [0, 1]}}``.
        name: Name where none is given.

    Raises:
        ConfigError: A key is unknown or missing, or a value is of another kind than expected.
    """
    fields = [f.name for f in dataclasses.fields(SweepSpec)]
    for key in given:
        if key not in fields:
            raise ConfigError(f"sweep: {unknown_name('key', str(key), fields)}")
    missing = [key for key in ("recipe", "space") if not given.get(key)]
    if missing:
        raise ConfigError(
            f"sweep: {' and '.join(missing)} missing; see `instructrec sweep --help`."
        )
    values = {"name": name, **given}
    values["settings"] = values.get("settings") or {}
    if not isinstance(values["settings"], Mapping):
        raise ConfigError(
            f"sweep: settings = {values['settings']!r}: expected dotted keys and their values."
        )
    values["recipe"] = _listed("recipe", values["recipe"], str, "a name or path, or a list of them")
    values["space"] = _space(values["space"])
    values["seeds"] = _listed("seeds", values.get("seeds", 0), int, "different whole numbers")
    spec = SweepSpec(**values)
    _check_values(spec)
    return spec


def _listed(key: str, given: Any, kind: type[Any], expected: str) -> tuple[Any, ...]:
    """One value, or a list of them, of a kind."""
    values = tuple(given) if isinstance(given, list | tuple) else (given,)
    if not values or any(not isinstance(v, kind) or isinstance(v, bool) for v in values):
        raise ConfigError(f"sweep: {key} = {given!r}: expected {expected}.")
    return values


def _space(given: Any) -> tuple[Dimension, ...]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"sweep: space = {given!r}: expected a mapping of keys to ranges.")
    return tuple(_dimension(str(key), value) for key, value in given.items())


def _dimension(key: str, given: Any) -> Dimension:
    kinds = get_args(Kind)
    if not isinstance(given, Mapping) or len(given) != 1:
        raise ConfigError(
            f"space.{key} = {given!r}: expected one of {', '.join(kinds)} with its values, e.g. "
            "{uniform: [0, 1]}."
        )
    ((kind, values),) = given.items()
    if kind not in kinds:
        raise ConfigError(f"space.{key}: {unknown_name('range', str(kind), kinds)}")
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ConfigError(f"space.{key}.{kind} = {values!r}: expected a list.")
    if kind != "choice":
        values = [_number(value) for value in values]
    dimension = Dimension(key, kind, tuple(values))
    complaint = _complaint(dimension)
    if complaint:
        raise ConfigError(f"space.{key}.{kind} = {list(values)!r}: expected {complaint}.")
    return dimension


def _number(value: Any) -> Any:
    """YAML reads 1e-5, without a point, as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _complaint(dimension: Dimension) -> str:
    """What is expected instead of the values; empty where they are fine."""
    values = dimension.values
    if dimension.kind == "choice":
        plain = all(
            value is None or isinstance(value, bool | int | float | str) for value in values
        )
        if not values or not plain or len(set(map(repr, values))) < len(values):
            return "different plain values, one at least"
        return ""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(values) != 2 or len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        return "two numbers, the lowest and the highest"
    if numbers[0] >= numbers[1]:
        return "the lower number first"
    if dimension.kind == "log_uniform" and numbers[0] <= 0:
        return "numbers above 0"
    if dimension.kind == "integer" and not all(isinstance(v, int) for v in numbers):
        return "whole numbers"
    return ""


def _check_values(spec: SweepSpec) -> None:
    if not isinstance(spec.name, str) or not FOLDER_NAME.fullmatch(spec.name):
        raise ConfigError(
            f"sweep: name = {spec.name!r}: expected letters, digits, '.', '_' and '-' only, "
            "because it names a folder; --dir says where."
        )
    if not isinstance(spec.metric, str):
        raise ConfigError(f"sweep: metric = {spec.metric!r}: expected the name of a metric.")
    check_choices(spec, "sweep")
    for key, least in (("trials", 1), ("pruner_startup", 0), ("sampler_seed", 0)):
        value = getattr(spec, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"sweep: {key} = {value!r}: expected a whole number from {least} on.")
    if min(spec.seeds) < 0 or len(set(spec.seeds)) < len(spec.seeds):
        raise ConfigError(f"sweep: seeds = {list(spec.seeds)}: expected different whole numbers.")
    if spec.sampler == "grid" and any(d.kind != "choice" for d in spec.space):
        raise ConfigError("sweep: sampler = 'grid' tries every combination: expected choices only.")
    for key in (*spec.settings, *(d.key for d in spec.space)):
        if key in _OWN:
            raise ConfigError(f"sweep: {key} is given to each run by the sweep itself: remove it.")


def check_runs(spec: SweepSpec) -> None:
    """Checks the recipe, the fixed settings and every end and choice of the space.

    Raises:
        ConfigError: One of them would be refused, or nothing would be measured in training.
    """
    base = spec.config({})
    for dimension in spec.space:
        for value in dimension.values:
            try:
                spec.config({dimension.key: value})
            except ConfigError as error:
                raise ConfigError(
                    f"space.{dimension.key}: {value!r} cannot be used with the recipe and the "
                    f"settings: {error}"
                ) from error
    _check_metric(spec, base)


def _check_metric(spec: SweepSpec, base: TrainConfig) -> None:
    metrics.lookup(spec.metric)
    prefix, _, rest = spec.metric.partition("/")
    reward = rest.removesuffix("/mean").partition(".")[0]
    if prefix == "eval" and rest.endswith("/mean") and "/" not in reward:
        known = ["total", *base.resolved().rewards]
        if reward not in known:
            raise ConfigError(f"sweep: metric: {unknown_name('reward', reward, known)}")
    supervised, name = base.supervised, base.section
    if (supervised or base.ppo).eval_every == 0:
        raise ConfigError(
            f"{name}.eval_every = 0: a sweep goes by {spec.metric}, measured on the validation "
            f"split in training. Set {name}.eval_every under settings."
        )
    if supervised is None:
        return
    if prefix == "eval" and supervised.best_metric is None:
        raise ConfigError(
            f"sweep: metric = {spec.metric!r} is measured in supervised training only with "
            f"{name}.best_by = 'reward': set that, or metric: {name}/val_loss with direction: "
            "minimize."
        )
    if spec.pruner != "none":
        raise ConfigError(
            f"sweep: pruner = {spec.pruner!r}: supervised runs are not pruned. Set pruner: none; "
            f"{name}.early_stopping_patience ends a run that no longer gets better."
        )
