"""What a task is, and how tasks are found by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from instructrec.errors import ConfigError, did_you_mean, unknown_name
from instructrec.rewards.loading import load_object

Message = Mapping[str, str]
"""One chat message: ``{"role": ..., "content": ...}``."""
Prompt = str | tuple[Message, ...]
"""A plain instruction, or a whole conversation that ends where the response begins."""

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
"""File endings that `make_task` reads as a data set."""

_FAMILIES = ("category", "odd_one_out", "swap_words", "compare_numbers", "parity", "arithmetic")
_BUILTIN = {name: f"instructrec.envs.tasks.{name}" for name in _FAMILIES}
_BUILTIN["calculations"] = "instructrec.envs.tasks.calculations"
_BUILTIN["cldr_names"] = "instructrec.envs.tasks.cldr_names"
_BUILTIN["constrained_writing"] = "instructrec.envs.tasks.constrained_writing"
_BUILTIN["one_line_functions"] = "instructrec.envs.tasks.functions"
_BUILTIN["closed_answers"] = "instructrec.envs.tasks.mixture"
_BUILTIN["augmented"] = "instructrec.envs.tasks.augmented"
_BUILTIN["few_shot"] = "instructrec.envs.tasks.few_shot"
_BUILTIN["mixture"] = "instructrec.envs.tasks.multitask"
_BUILTIN["random_walks"] = "instructrec.envs.tasks.random_walks"
_BUILTIN["reasoning_gym"] = "instructrec.envs.tasks.reasoning"
_SKILLS = {
    "words": ("string_operations", "ordering", "counting"),
    "formats": ("format_following",),
    "dates": ("date_reasoning",),
    "units": ("unit_conversion",),
    "passages": ("passage_lookup", "entity_extraction", "relation_extraction"),
    "rules": ("rule_classification",),
    "catalog": ("skills",),
}
_BUILTIN |= {
    name: f"instructrec.envs.tasks.skills.{module}"
    for module, names in _SKILLS.items()
    for name in names
}
_REGISTRY: dict[str, TaskFactory] = {}


@dataclass(frozen=True)
class Instruction:
    """One thing to ask a policy, with what its rewards need to know."""

    id: str
    """Stable and unique within the task."""
    prompt: Prompt
    """The instruction, or the conversation so far."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The item's other fields, e.g. ``reference``; every item of a task has the same keys."""


class Task(Protocol):
    """A finite, indexable sequence of instructions that never changes."""

    name: str
    """Short name, fit for file names."""
    split: str
    """``train``, ``validation``, ``test``, or ``all`` for a whole data set."""
    columns: tuple[str, ...]
    """Names of the columns of every instruction."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Instruction:
        """Returns an item; the same one for the same index, always."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides the task's items."""
        ...


TaskFactory = Callable[..., Task]
"""Makes a task: called as ``factory(split=..., **options)``."""
_Factory = TypeVar("_Factory", bound=TaskFactory)


def iterate(task: Task) -> Iterator[Instruction]:
    """Yields every instruction of a task in order."""
    return (task[index] for index in range(len(task)))


def default_rewards(task: Task) -> Any:
    """Returns what `make_rewards` makes a task's own rewards from: exact match, if it has none."""
    return getattr(task, "rewards", {"exact_match": 1.0})


def labels_of(task: Task, index: int) -> Mapping[str, Any]:
    """Returns columns of an item: those that the task knows without making it, else all.

    A task for which making an item costs much has a method ``labels(index)`` that says what level,
    family and the like it is of.
    """
    labels = getattr(task, "labels", None)
    return task[index].columns if labels is None else labels(index)


def render_prompt(prompt: Prompt) -> str:
    """Returns a prompt as one string: itself, or a conversation as ``role: content`` lines."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def register_task(name: str, *, override: bool = False) -> Callable[[_Factory], _Factory]:
    """Decorator that makes a task class or function known by a name.

    Example::

        @register_task("capitals")
        def capitals(*, split="train"):
            return DatasetTask("capitals.jsonl", split=split)

    Running the same definition again (a file loaded twice, a notebook cell) replaces it.

    Args:
        name: The name, of letters, digits, ``_`` and ``-``.
        override: Replace a task of the same name instead of refusing.

    Raises:
        ConfigError: The name is taken or cannot be told from a path.
    """
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ConfigError(f"task name {name!r}: use letters, digits, '_' and '-' only")

    def register(factory: _Factory) -> _Factory:
        known = _REGISTRY.get(name)
        elsewhere = name in _BUILTIN and factory.__module__ != _BUILTIN[name]
        redefined = known is not None and _place(known) == _place(factory)
        if (elsewhere or known is not None) and not (override or redefined):
            raise ConfigError(
                f"a task named {name!r} exists already; choose another name or pass override=True"
            )
        _REGISTRY[name] = factory
        return factory

    return register


def list_tasks() -> list[str]:
    """Returns the names that `make_task` knows, sorted."""
    return sorted(_BUILTIN.keys() | _REGISTRY.keys())


def make_task(spec: str, *, split: str = "train", **options: Any) -> Task:
    """Makes a task from a name, a data file or a user's own factory.

    Args:
        spec: A registered name (`list_tasks`), the path of a ``.jsonl``, ``.json``, ``.csv`` or
            ``.parquet`` file, a folder that ``datasets`` saved, ``"hf:<id on the hub>"``,
            ``"package.module:factory"`` or ``"file.py:factory"``.
        split: ``train``, ``validation`` or ``test``; data files know ``all`` as well.
        options: Passed to the task; procedural tasks take ``seed`` and ``size``, data what
            `DatasetTask` lists.

    Raises:
        ConfigError: Unknown name, split or option, or a factory that cannot be imported.
        DataError: A data file that cannot be used.
    """
    if not isinstance(spec, str):
        raise ConfigError(f"a task is named by a string, not {spec!r}; see list_tasks()")
    factory, leading = _find_factory(spec)
    _check_options(spec, factory, options, num_leading=len(leading))
    return factory(*leading, split=split, **options)


def names_data(spec: str) -> bool:
    """Returns whether a spec of `make_task` names a data file, folder or data set of the hub."""
    if spec.startswith("hf:") or Path(spec).suffix.lower() in DATA_SUFFIXES:
        return True
    # A registered name wins over a folder that happens to have it.
    known = spec in _REGISTRY or spec in _BUILTIN
    return not known and Path(spec).expanduser().is_dir()


def check_split(split: str, known: tuple[str, ...]) -> str:
    """Returns the split if it is known.

    Raises:
        ConfigError: It is not; the message suggests the closest one.
    """
    if split not in known:
        raise ConfigError(unknown_name("split", str(split), known))
    return split


def check_index(index: int, size: int, name: str) -> int:
    """Returns an index into a task as a plain integer.

    Raises:
        IndexError: It is not in ``range(size)``.
    """
    plain = index.__index__()
    if not 0 <= plain < size:
        raise IndexError(f"task {name!r} has items 0..{size - 1}, not {plain}")
    return plain


def _place(factory: TaskFactory) -> tuple[str | None, str | None]:
    return getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)


def _find_factory(spec: str) -> tuple[TaskFactory, tuple[str, ...]]:
    """Returns what makes the task, and the positional arguments that it takes."""
    if names_data(spec):
        from instructrec.envs.tasks.dataset import DatasetTask

        return DatasetTask, (spec,)
    if ":" in spec:
        return _load_factory(spec), ()
    if spec not in _REGISTRY:
        if spec not in _BUILTIN:
            if Path(spec).suffix or Path(spec).is_file():
                raise ConfigError(
                    f"{spec!r} is no data file that can be read: expected a name ending in "
                    f"{', '.join(DATA_SUFFIXES)}. Write its rows as JSON Lines, say."
                )
            known = unknown_name("task", spec, list_tasks())
            raise ConfigError(
                f"{known} A data file ends in {', '.join(DATA_SUFFIXES)}; a data set of the hub is "
                "given as hf:ID; your own task is given as 'module:factory' or 'file.py:factory'."
            )
        importlib.import_module(_BUILTIN[spec])
    return _REGISTRY[spec], ()


def _check_options(
    spec: str, factory: TaskFactory, options: Mapping[str, Any], num_leading: int
) -> None:
    parameters = list(inspect.signature(factory).parameters.values())[num_leading:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY and p.name != "split"]
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"task {spec!r} has no option {name!r}.{hint} Options: {known}")


def _load_factory(spec: str) -> TaskFactory:
    """Imports the factory that ``module:attr`` or ``file.py:attr`` names."""
    try:
        factory = load_object(spec)
    except ConfigError as error:
        raise ConfigError(f"task {spec!r}: {error}") from error
    if not callable(factory):
        raise ConfigError(
            f"task {spec!r} is a {type(factory).__name__}; expected a class or function that is "
            "called as factory(split=..., **options) and returns a task"
        )
    return factory
