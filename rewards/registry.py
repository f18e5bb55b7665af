"""Reward functions by name, and making one ready for use.

A reward is named in four ways: a registered name (``bleu``), an attribute of an importable module
(``package.module:attr``), an attribute of a file (``my_rewards.py:politeness``), or the function
itself. Built-in rewards are listed here by name and imported when they are first made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from instructrec.errors import ConfigError, did_you_mean, unknown_name
from instructrec.rewards.base import RewardInfo
from instructrec.rewards.calling import BoundReward
from instructrec.rewards.loading import load_object, portable, split_spec
from instructrec.rewards.plugins import Plugin, find_plugin, list_plugins

_F = TypeVar("_F", bound=Callable[..., Any])

NAME = re.compile(r"[a-z0-9_]+")
"""What a reward may be called."""
RESERVED = {
    "total": "it stands for the sum of all rewards",
    "normalised_total": "it stands for that sum where rewards are normalised",
    "renormalise": "it is a setting of the weighted sum",
}
"""Names that no reward may take -> why."""

_QUALITIES = {
    "exact_match": "exact:exact_match",
    "f1": "exact:f1",
    "contains": "matching:contains",
    "regex": "matching:Regex",
    "fuzzy": "matching:fuzzy",
    "numeric": "choices:numeric",
    "multiple_choice": "choices:multiple_choice",
    "bleu": "overlap:bleu",
    "chrf": "overlap:chrf",
    "ter": "overlap:ter",
    "rouge": "rouge:rouge",
    "meteor": "meteor:Meteor",
    "json_valid": "formats:json_valid",
    "json_schema": "formats:JsonSchema",
    "xml_tags": "formats:XmlTags",
    "length": "style:Length",
    "repetition": "style:repetition",
    "refusal": "style:refusal",
    "no_refusal": "style:no_refusal",
    "language": "language:Language",
    "constraints": "constraints:constraints",
    "code_execution": "code_execution:CodeExecution",
    "optimality": "walks:optimality",
    "math_verify": "maths:MathVerify",
    "reasoning_gym": "reasoning:ReasoningGym",
    "embedding_similarity": "embedding:EmbeddingSimilarity",
    "alignment": "alignment:AlignmentReward",
    "llm_judge": "judge:LLMJudge",
}
"""Built-in rewards whose scores lie in [0, 1] -> module and attribute."""
_BUILTINS = {
    **{
        name: RewardInfo(name, f"instructrec.rewards.{place}", range=(0.0, 1.0))
        for name, place in _QUALITIES.items()
    },
    "classifier": RewardInfo(
        "classifier",
        "instructrec.rewards.classifier:ClassifierReward",
        range=(0.0, 1.0),
        format="chat",
    ),
    "hf_metric": RewardInfo("hf_metric", "instructrec.rewards.hf_metric:HfMetric"),
    "learned": RewardInfo("learned", "instructrec.rewards.learned:LearnedReward", format="chat"),
    "weighted": RewardInfo("weighted", "instructrec.rewards.combinators:Weighted", format="chat"),
    "gate": RewardInfo("gate", "instructrec.rewards.combinators:Gate", format="chat"),
    "sequence": RewardInfo("sequence", "instructrec.rewards.combinators:Ordered", format="chat"),
    "minimum": RewardInfo("minimum", "instructrec.rewards.combinators:Minimum", format="chat"),
    "product": RewardInfo("product", "instructrec.rewards.combinators:Product", format="chat"),
}
_registered: dict[str, RewardInfo] = dict(_BUILTINS)
_overridden: set[str] = set()  # names that somebody took on purpose


def register_reward(
    name: str,
    *,
    range: tuple[float, float] | None = None,
    requires: Sequence[str] = (),
    format: Literal["text", "chat"] = "text",
    version: int = 1,
    override: bool = False,
) -> Callable[[_F], _F]:
    """Registers a reward function or class under a name; the function itself stays as it is.

    Example::

        @register_reward("politeness", range=(0, 1))
        def politeness(completions, **columns) -> list[float]:
            return [float("please" in text.lower()) for text in completions]

    Running the same definition again (a file loaded twice, a notebook cell) replaces it.

    Args:
        name: What configs call it: lower-case letters, digits and underscores.
        range: Lowest and highest score it may give; a score outside counts as failed.
        requires: Columns that it reads out of ``**columns``. Parameters without default count by
            themselves.
        format: ``text`` hands completions over as strings, ``chat`` as lists of messages.
        version: Of what it computes; raise it when scores that were cached before are out of date.
        override: Take the name although another reward has it.

    Raises:
        ConfigError: When the name is taken, reserved or malformed, or another argument is wrong.
    """
    check_name(name)
    _check_range(name, range)
    if isinstance(requires, str) or format not in ("text", "chat"):
        raise ConfigError(
            f"register_reward({name!r}): requires = {requires!r}, format = {format!r}; expected "
            "a tuple of column names, and 'text' or 'chat'."
        )

    def decorate(target: _F) -> _F:
        if not callable(target):
            raise ConfigError(f"register_reward({name!r}): {target!r} cannot be called.")
        known = _registered.get(name)
        if known is not None and not override and not _same_definition(known.target, target):
            raise ConfigError(
                f"a reward named {name!r} exists already ({_place(known.target)}). Choose another "
                "name, or pass override=True to replace it."
            )
        if override:
            _overridden.add(name)
        limits = None if range is None else (float(range[0]), float(range[1]))
        _registered[name] = RewardInfo(name, target, limits, tuple(requires), format, version)
        return target

    return decorate


def list_rewards() -> list[str]:
    """Returns every registered name, sorted."""
    return sorted({*_registered, *list_plugins()})


def builtin_rewards() -> list[str]:
    """Returns the names of the rewards that come with this package, sorted."""
    return sorted(_BUILTINS)


def reward_info(name: str) -> RewardInfo:
    """Returns what is known about a registered reward; only those of packages are imported.

    Raises:
        ConfigError: When no reward has this name (the message names those that exist), when two
            have it, or when the package that brings it does not import.
    """
    plugin = find_plugin(name)
    if plugin is not None and name not in _overridden:
        return _plugin_info(plugin)
    if name not in _registered:
        file = name if name.endswith(".py") else "my_rewards.py"
        hint = f" To use a function of a file, name both: {file}:my_reward"
        raise ConfigError(unknown_name("reward", name, list_rewards()) + hint)
    return _registered[name]


def make_reward(spec: str | Callable[..., Any], /, **options: Any) -> BoundReward:
    """Makes one reward.

    Args:
        spec: A registered name, ``module:attr``, ``file.py:attr``, or a function, a class (options
            go to its constructor) or a factory (a function that reads no completions; options go
            to it and it returns the reward).
        **options: Options of the reward, checked against its signature.

    Raises:
        ConfigError: When the reward cannot be found or imported, or an option does not fit.
    """
    return BoundReward(find_reward(spec), options)


def find_reward(spec: str | Callable[..., Any]) -> RewardInfo:
    """Returns what is known about a reward; ``spec`` as for ``make_reward``."""
    if isinstance(spec, BoundReward):
        raise ConfigError(f"{spec!r} is made already; use it as it is, or give what it is made of.")
    if callable(spec):
        return _info_of(spec, _derived_name(spec))
    if not isinstance(spec, str):
        raise ConfigError(
            f"a reward is given as {spec!r} ({type(spec).__name__}); expected a name, "
            "'module:attr', 'file.py:attr' or a function."
        )
    if ":" not in spec:
        return reward_info(spec)
    place, attr = split_spec(spec)
    target = load_object(spec)
    if not callable(target):
        raise ConfigError(
            f"{spec} is {target!r} ({type(target).__name__}); expected a function or class."
        )
    if place.endswith(".py"):
        spec = f"{Path(place).expanduser().resolve()}:{attr}"
    return replace(_info_of(target, _derived_name(target, attr)), target=spec)


def read_as(info: RewardInfo, format: Literal["text", "chat"] | None) -> RewardInfo:
    """Returns what is known about a reward, with another format: ``text``, ``chat``, None as it is.

    Raises:
        ConfigError: When the format is none of these.
    """
    if format is None:
        return info
    if format not in ("text", "chat"):
        raise ConfigError(
            f"reward {info.name!r}: format = {format!r}; expected text or chat."
            f"{did_you_mean(str(format), ('text', 'chat'))}"
        )
    return replace(info, format=format)


def check_name(name: str) -> None:
    """Raises ConfigError unless ``name`` may name a reward."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"reward name {name!r}: expected lower-case letters, digits and underscores only."
        )
    if name in RESERVED:
        raise ConfigError(f"reward name {name!r} is reserved: {RESERVED[name]}.")


def spec_text(target: str | Callable[..., Any]) -> str:
    """Returns text from which another process can find a reward.

    Raises:
        ConfigError: When there is none, as for a function inside a function.
    """
    for name, info in _BUILTINS.items():
        if target == info.target and _registered[name] is info:
            return name
    target = portable(target)
    if isinstance(target, str):
        return target
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "<")
    if module and module != "__main__" and "<" not in name:
        return f"{module}:{name}"
    file = getattr(getattr(target, "__code__", None), "co_filename", "<")
    if module == "__main__" and "<" not in name and Path(file).is_file():
        return f"{Path(file).resolve()}:{name}"
    for known in _registered.values():
        if known.target is target:  # a notebook: the name serves this process at least
            return known.name
    raise ConfigError(
        f"{target!r} cannot be written into a config: it is not a function or class at the top "
        "level of a file. Move it to one and name it as 'file.py:attr'."
    )


def _plugin_info(plugin: Plugin) -> RewardInfo:
    """What is known about a reward of a package, which is imported for that."""
    try:
        target = load_object(plugin.target)
    except ConfigError as error:
        raise ConfigError(
            f"the package {plugin.package} brings the reward {plugin.name!r}, but: {error}"
        ) from error
    known = _registered.get(plugin.name)  # the import may have registered it
    if known is None:
        _registered[plugin.name] = known = replace(_info_of(target, plugin.name), name=plugin.name)
    elif known.target is not target:
        ours = plugin.name in _BUILTINS and known is _BUILTINS[plugin.name]
        raise ConfigError(
            f"the package {plugin.package} brings a reward named {plugin.name!r} "
            f"({plugin.target}), but {'the package instructrec' if ours else 'this process'} has "
            f"one, too ({_place(known.target)}). Name the one you mean by its place, module:attr."
        )
    return known


def _info_of(target: Callable[..., Any], name: str) -> RewardInfo:
    for info in _registered.values():
        if info.target is target:
            return info
    module = getattr(target, "__module__", None) or type(target).__module__
    # TRL's own rewards index into chat messages; they never see plain text.
    chat = str(module).split(".")[:2] == ["trl", "rewards"]
    return RewardInfo(name, target, format="chat" if chat else "text")


def _derived_name(target: Callable[..., Any], fallback: str = "reward") -> str:
    given = getattr(target, "__name__", None) or fallback
    return re.sub(r"[^a-z0-9]+", "_", given.lower()).strip("_") or "reward"


def _check_range(name: str, range: tuple[float, float] | None) -> None:
    if range is None:
        return
    try:
        low, high = (float(bound) for bound in range)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not low < high:
        raise ConfigError(
            f"register_reward({name!r}): range = {range!r}; expected (lowest, highest) score, "
            "e.g. (0, 1)."
        )


def _same_definition(old: Any, new: Any) -> bool:
    """Whether two objects are one definition that was run twice."""
    if getattr(old, "__qualname__", 0) != getattr(new, "__qualname__", 1):
        return False
    places = [(getattr(t, "__module__", None), _source_file(t)) for t in (old, new)]
    (old_module, old_file), (new_module, new_file) = places
    # A cell of a notebook gets a new file name each time it runs; its module is __main__.
    return old_module == new_module or (old_file is not None and old_file == new_file)


def _source_file(target: Any) -> str | None:
    code = getattr(target, "__code__", None) or getattr(
        getattr(target, "__init__", None), "__code__", None
    )
    return None if code is None else str(Path(code.co_filename).resolve())


def _place(target: Any) -> str:
    if isinstance(target, str):
        return target
    module, name = getattr(target, "__module__", "?"), getattr(target, "__qualname__", target)
    return f"{_source_file(target) or module}:{name}"
