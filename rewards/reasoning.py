"""The problems of the reasoning-gym library, and the scorer of each as a reward.

A problem travels as text (`pack`): what generated it, with which options, and all that the library
said of it, in Python's literals. Whoever has that text can score an answer, in any process.

Some scorers let Python or SymPy evaluate the answer, which can take for ever or all memory. These
run in a process of their own with a deadline, and never see an answer that names what a formula
has no use for.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from instructrec.errors import ConfigError, DataError, RewardError, did_you_mean, unknown_name
from instructrec.rewards.base import FailedScore, Status
from instructrec.rewards.isolation import Workers, WorkerSettings
from instructrec.rewards.registry import make_reward
from instructrec.rewards.text import completion_texts

EVALUATING = frozenset(
    {
        *("binary_matrix", "composite", "countdown", "intermediate_integration"),
        *("n_queens", "polynomial_multiplication", "puzzle24", "simple_integration"),
        *("spiral_matrix", "string_insertion"),
    }
)
"""Generators whose scorer evaluates the answer, or may hand it on to one that does."""
MEMORY_MB = 4096
"""Most address space of the process that evaluates answers, where the system can limit it."""

_OURS = ("seed", "size")
_CODE = re.compile(r"__|\b(?:breakpoint|compile|eval|exec|exit|getattr|import|input|lambda|open)\b")


def require_library() -> None:
    """Makes sure that the library is there.

    Raises:
        ConfigError: It is not; the message names the extra.
    """
    if find_spec("reasoning_gym") is None:
        raise ConfigError(
            "problems of reasoning-gym need the package reasoning-gym: "
            "pip install 'instructrec[reasoning-gym]'."
        )


def list_generators() -> list[str]:
    """Returns the names of the library's generators, sorted.

    Raises:
        ConfigError: The library is not installed.
    """
    require_library()
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


def check_options(generator: str, options: Mapping[str, Any]) -> None:
    """Refuses options that the generator does not have.

    Raises:
        ConfigError: No such generator or option.
    """
    if generator not in (names := list_generators()):
        raise ConfigError(unknown_name("generator", str(generator), names))
    from reasoning_gym.factory import DATASETS

    fields = dataclasses.fields(DATASETS[generator][1])
    known = [field.name for field in fields if field.name not in _OURS]
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(
                f"generator {generator!r} has no option {name!r}.{hint} Options: {known}"
            )


def level_options(generator: str, level: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a level of difficulty, as the library's curriculum sets them.

    Args:
        generator: Its name.
        level: From 0 to the highest level that any option of the curriculum has; ranges go from
            their lowest value to that of the level.
        options: What the curriculum leaves open.

    Raises:
        ConfigError: The generator has no curriculum or no such level, the library refuses what its
            own curriculum says, or an option is among those that the level sets.
    """
    check_options(generator, options)
    from reasoning_gym.factory import CURRICULA

    if generator not in CURRICULA:
        raise ConfigError(f"generator {generator!r} has no levels: leave levels out")
    curriculum: Any = CURRICULA[generator]()
    highest = max(len(attribute.levels) for attribute in curriculum.attributes.values()) - 1
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= highest:
        raise ConfigError(f"generator {generator!r} has the levels 0 to {highest}, not {level!r}")
    curriculum.set_global_level(level)
    configuration = curriculum.generate_configuration(dict(options))
    set_here = {
        getattr(attribute, field)
        for attribute in curriculum.attributes.values()
        for field in ("field_name", "lower_field_name", "upper_field_name")
        if hasattr(attribute, field)
    }
    for name in options:
        if name in set_here:
            raise ConfigError(f"option {name!r} of {generator!r} is set by the level: leave it out")
    whole = {**options, **{name: getattr(configuration, name) for name in sorted(set_here)}}
    try:
        make_generator(generator, whole)
    except ConfigError as error:
        raise ConfigError(f"level {level}: {error}") from error
    return whole


def make_generator(generator: str, options: Mapping[str, Any], seed: int | None = None) -> Any:
    """Returns the library's data set of one item; without a seed, the same options share one.

    Raises:
        ConfigError: No such generator or option, or values that the library refuses.
    """
    try:
        text = json.dumps(dict(options), sort_keys=True)
    except TypeError as error:
        raise ConfigError(f"options of {generator!r}: expected plain values: {error}") from error
    return _shared(generator, text) if seed is None else _make(generator, text, seed)


@lru_cache(maxsize=256)
def _shared(generator: str, options: str) -> Any:
    return _make(generator, options, seed=0)


def _make(generator: str, options: str, seed: int) -> Any:
    values = json.loads(options)
    check_options(generator, values)
    from reasoning_gym.composite import DatasetSpec
    from reasoning_gym.factory import create_dataset

    try:
        if generator == "composite":
            values = {name: _specs(value, DatasetSpec) for name, value in values.items()}
        return create_dataset(generator, **values, seed=seed, size=1)
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"generator {generator!r} with {options}: {error}") from error


def _specs(values: Sequence[Mapping[str, Any]], kind: Any) -> list[Any]:
    return [kind(**{"weight": 1.0, "config": {}, **value}) for value in values]


def reseeded(made: Any, seed: int) -> Any:
    """Returns a data set like the given one with another seed, sharing what it has read."""
    other = copy.copy(made)
    other.seed = seed
    return other


def pack(generator: str, options: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Returns a problem of the library as text, for the column ``entry``.

    Tuples and keys of any kind are kept, other objects (fractions, dates) become their text.
    """
    whole = {"generator": generator, "options": dict(options), "entry": _plain(entry)}
    return repr(whole)


def _plain(value: Any) -> Any:
    """Returns a value as what Python has literals for."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    return value.item() if isinstance(value, np.generic) else str(value)


@lru_cache(maxsize=512)
def _unpacked(text: str) -> dict[str, Any]:
    """Reads a packed problem.

    Raises:
        DataError: The text is none.
    """
    try:
        problem = ast.literal_eval(text)
        problem["generator"], problem["options"], problem["entry"]["answer"]
    except (ValueError, SyntaxError, TypeError, KeyError) as error:
        raise DataError(
            f"column 'entry' is {text[:80]!r}...; expected what the task 'reasoning_gym' puts there"
        ) from error
    return problem


def score_packed(text: str, answer: str) -> float:
    """Returns what the library's own scorer gives for an answer to a packed problem.

    Where the scorer raises at the answer but not at the library's, it is the answer that cannot be
    read: 0.0.

    Raises:
        DataError: The text is no packed problem.
    """
    problem = _unpacked(text)
    generator = make_generator(problem["generator"], problem["options"])
    entry = copy.deepcopy(problem["entry"])
    try:
        return float(generator.score_answer(answer, entry))
    except Exception:
        generator.score_answer(problem["entry"]["answer"], entry)
        return 0.0


class ReasoningGym:
    """The score of a response by the scorer of the generator that made the problem.

    The answer is what stands between the last ``<answer>`` and ``</answer>``, else the whole
    response, without white space around it. Many scorers give a small part of the score to a wrong
    or badly written answer; what they give is left as it is.

    A scorer that evaluates answers runs in a process of its own. There, one that takes too long or
    takes the process with it is a failure, not a 0.

    Args:
        timeout_s: Longest time for one evaluated answer, in seconds.
        answer_tag: Name of the tag around the answer; None takes the whole response.

    Raises:
        ConfigError: The library is not installed or the time is not positive.
    """

    __name__ = "reasoning_gym"

    def __init__(self, *, timeout_s: float = 10.0, answer_tag: str | None = "answer") -> None:
        require_library()
        if not timeout_s > 0:
            raise ConfigError(f"reward 'reasoning_gym': timeout_s = {timeout_s}: expected above 0")
        self.answer_tag = answer_tag
        memory_mb = MEMORY_MB if sys.platform == "linux" else None
        self._workers = Workers(
            make_reward("instructrec.rewards.reasoning:Evaluation"),
            WorkerSettings(timeout=timeout_s, memory_mb=memory_mb, chunk=1),
        )

    def __call__(
        self, completions: Sequence[Any], entry: Sequence[str], **columns: Any
    ) -> list[float | None]:
        """Scores B responses.

        Args:
            completions: B responses.
            entry: B packed problems.
            **columns: Not read.

        Returns:
            B scores in [0, 1]; a ``FailedScore`` where the scorer failed.

        Raises:
            DataError: When an entry is no packed problem.
            ConfigError: When the process that evaluates answers cannot be started.
        """
        answers = [self._answer(text) for text in completion_texts(completions)]
        scores: list[float | None] = [0.0] * len(answers)
        evaluated = []
        for i, (answer, text) in enumerate(zip(answers, entry, strict=True)):
            if _unpacked(text)["generator"] not in EVALUATING:
                scores[i] = score_packed(text, answer)
            elif not _CODE.search(answer):
                evaluated.append(i)
        if evaluated:
            self._evaluate(evaluated, answers, entry, scores)
        return scores

    def close(self) -> None:
        """Ends the process; the next batch starts another."""
        self._workers.close()

    def _answer(self, response: str) -> str:
        if self.answer_tag is not None:
            _, opened, rest = response.rpartition(f"<{self.answer_tag}>")
            inside, closed, _ = rest.partition(f"</{self.answer_tag}>")
            if opened and closed:
                return inside.strip()
        return response.strip()

    def _evaluate(
        self,
        rows: Sequence[int],
        answers: Sequence[str],
        entry: Sequence[str],
        scores: list[float | None],
    ) -> None:
        texts, entries = [answers[i] for i in rows], [entry[i] for i in rows]
        try:
            judged = self._workers.score([""] * len(rows), texts, {"entry": entries})
        except RewardError as error:  # no sample is to blame
            raise ConfigError(f"reward 'reasoning_gym': {error}") from error
        for k, i in enumerate(rows):
            status = judged.status[k]
            failed = status is not Status.SCORED
            scores[i] = FailedScore(status, judged.messages[k]) if failed else judged.scores[k]


class Evaluation:
    """The reward that runs in the process of `ReasoningGym`: no deadline, no limit of memory."""

    __name__ = "evaluation"

    def warm_up(self) -> None:
        """Imports what the first score needs."""
        list_generators()

    def __call__(
        self, completions: Sequence[str], entry: Sequence[str], **columns: Any
    ) -> list[float]:
        """Scores B answers to B packed problems."""
        return [score_packed(text, a) for a, text in zip(completions, entry, strict=True)]
