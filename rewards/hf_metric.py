"""Metrics of the Hugging Face library ``evaluate``: as a reward, and over a whole corpus.

The library is slow for single samples and its metric objects must not be shared by threads, so one
lock stands around every call. For training there are faster rewards of the same names; the place of
these is evaluation. Four metrics are shipped and need no hub.
"""

from __future__ import annotations

import importlib
import inspect
import os
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec.errors import ConfigError, DataError, did_you_mean, unknown_name
from instructrec.rewards.base import FailedScore, Status
from instructrec.rewards.scoring import describe_error
from instructrec.rewards.text import completion_text, reference_texts

if TYPE_CHECKING:
    from instructrec.corpus_metrics.common import Tally

SHIPPED = ("bleu", "chrf", "exact_match", "rouge")
"""Metrics that come with this package and work without a network."""

_lock = threading.Lock()


class HfMetric:
    """The score that a metric of ``evaluate`` gives to each response by itself.

    Args:
        path: Name of a shipped metric (``bleu``, ``chrf``, ``exact_match``, ``rouge``); the file or
            folder of one; or, with ``trust_remote_code``, a name on the hub.
        key: Which of its results is the score; needed when it gives several numbers.
        scale: Factor, e.g. 0.01 for a metric that goes to 100.
        settings: Options of the metric itself.
        trust_remote_code: Whether code of the hub may be downloaded and run.

    Raises:
        ConfigError: When ``evaluate`` is not installed or there is no such metric.
    """

    __name__ = "hf_metric"

    def __init__(
        self,
        path: str,
        *,
        key: str | None = None,
        scale: float = 1.0,
        settings: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        _require_evaluate()
        self.path = _checked(path, trust_remote_code)
        self.identity_path = None if self.path in SHIPPED else self.path
        self.key = key
        self.scale = scale
        self.settings = dict(settings or {})
        self._metric: Any = None

    def __call__(
        self,
        completions: Sequence[Any],
        reference: Sequence[str | Sequence[str] | None],
        **columns: Any,
    ) -> list[float | None]:
        """Scores B responses one by one.

        Args:
            completions: B responses.
            reference: B expected answers, each a string or several acceptable strings.
            **columns: Not read.

        Returns:
            B scores; None where the sample has no expected answer; a ``FailedScore`` where the
            metric raised.

        Raises:
            ConfigError: When the metric cannot be loaded or ``key`` is none of its results.
            DataError: When a reference is not text, or there are several and the metric takes one.
        """
        with _lock:
            if self._metric is None:
                self._metric = _load(self.path)
            return [
                self._score(completion_text(completion), reference_texts(expected, "hf_metric", i))
                for i, (completion, expected) in enumerate(zip(completions, reference, strict=True))
            ]

    def _score(self, response: str, answers: list[str] | None) -> float | None:
        if answers is None:
            return None
        answers = [_clean(answer) for answer in answers]
        if not _takes_lists(self._metric) and len(answers) > 1:
            raise DataError(
                f"reward 'hf_metric': a sample has {len(answers)} references, but {self.path!r} "
                "takes one."
            )
        expected: Any = answers if _takes_lists(self._metric) else answers[0]
        try:
            result = self._metric.compute(
                predictions=[_clean(response)], references=[expected], **self.settings
            )
        except Exception as error:
            return FailedScore(Status.RAISED, describe_error(error)[:300])
        return _pick(result, self.key, self.path) * self.scale

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_metric": None}


def corpus_metrics(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str] | None],
    names: Sequence[str] = ("bleu", "chrf"),
) -> dict[str, float]:
    """Computes metrics over a whole corpus; texts without a reference are left out.

    Args:
        predictions: N texts.
        references: N expected texts, each a string or several.
        names: Of the shipped metrics: ``bleu``, ``chrf``, ``exact_match``, ``rouge``.

    Returns:
        Name -> value in [0, 1]; ``rouge`` gives ``rouge1``, ``rouge2``, ``rougeL`` and
        ``rougeLsum``.

    Raises:
        ConfigError: When ``evaluate`` is not installed or a name is unknown.
        DataError: When the lengths differ, a reference is not text, or no text has one.
    """
    check_corpus_names(names)
    if len(predictions) != len(references):
        raise DataError(
            f"corpus_metrics: {len(predictions)} predictions and {len(references)} references; "
            "expected one each."
        )
    listed = [reference_texts(r, "corpus_metrics", i) for i, r in enumerate(references)]
    kept = [
        (_clean(p), [_clean(a) for a in r]) for p, r in zip(predictions, listed, strict=True) if r
    ]
    if not kept:
        raise DataError("corpus_metrics: no prediction has a reference to compare it with.")
    values: dict[str, float] = {}
    for name in names:
        with _lock:
            result = _load(name).compute(
                predictions=[p for p, _ in kept], references=[r for _, r in kept]
            )
        values |= {key: float(value) for key, value in result.items() if _is_number(value)}
    return values


def corpus_tallies(
    predictions: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str]
) -> dict[str, Tally]:
    """What each text adds to the corpus metrics, so that the values of any of them can be told.

    Args:
        predictions: N texts.
        references: N lists of one or more expected texts.
        names: As for ``corpus_metrics``.

    Returns:
        As ``corpus_metrics``, with a ``Tally`` of N rows for each value.

    Raises:
        ConfigError: When ``evaluate`` is not installed or a name is unknown.
    """
    check_corpus_names(names)
    texts, answers = [*map(_clean, predictions)], [[*map(_clean, r)] for r in references]
    tallies: dict[str, Tally] = {}
    for name in names:
        tallies |= _load(name).tally(texts, answers)
    return tallies


def check_corpus_names(names: Sequence[str]) -> None:
    """Raises ConfigError when there is no such corpus metric, or ``evaluate`` is not installed."""
    for name in names:
        if name not in SHIPPED:
            raise ConfigError(
                unknown_name("corpus metric", name, SHIPPED)
                + " They come with this package; those of a hub are not loaded."
            )
    if names:
        _require_evaluate()


def _require_evaluate() -> None:
    if find_spec("evaluate") is None:
        raise ConfigError(
            "metrics of Hugging Face need the package evaluate: "
            "pip install 'instructrec[evaluate]'."
        )


def _checked(path: str, trusted: bool) -> str:
    """Returns what ``_load`` takes; raises ConfigError when there is or may be no such metric."""
    if path in SHIPPED:
        return path
    place = Path(path).expanduser()
    file = place / f"{place.name}.py" if place.is_dir() else place
    if file.is_file() and file.suffix == ".py" and (place.is_absolute() or len(place.parts) > 1):
        return str(file.resolve())
    shipped = f" Shipped, and usable without a network: {', '.join(SHIPPED)}."
    if place.is_absolute() or path.startswith((".", "~")) or path.endswith(".py") or not path:
        raise ConfigError(
            f"reward 'hf_metric': no metric {path!r}; expected a file, or a folder NAME with the "
            f"file NAME.py.{shipped}"
        )
    if not trusted:
        raise ConfigError(
            f"reward 'hf_metric': {path!r} is a name on the hub, whose code would be downloaded "
            f"and run; set trust_remote_code: true if you want that.{did_you_mean(path, SHIPPED)}"
            f"{shipped}"
        )
    return path


def _load(path: str) -> Any:
    """Loads a metric that keeps its data in memory."""
    import evaluate

    if path in SHIPPED:
        module = importlib.import_module(f"instructrec.corpus_metrics.{path}")
        defined: list[Any] = [value for value in vars(module).values() if inspect.isclass(value)]
        (metric,) = (value for value in defined if value.__module__ == module.__name__)
        return metric(keep_in_memory=True)
    try:
        return evaluate.load(path, keep_in_memory=True)
    except Exception as error:
        offline = " The hub is switched off (HF_HUB_OFFLINE)." if _offline() else ""
        raise ConfigError(
            f"reward 'hf_metric': the metric {path!r} cannot be loaded: {describe_error(error)}"
            f"{offline} Shipped, and usable without a network: {', '.join(SHIPPED)}."
        ) from error


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def _takes_lists(metric: Any) -> bool:
    import datasets

    schemas = metric.features if isinstance(metric.features, list) else [metric.features]
    return any(not isinstance(schema["references"], datasets.Value) for schema in schemas)


def _pick(result: Mapping[str, Any], key: str | None, path: str) -> float:
    numbers = {name: value for name, value in result.items() if _is_number(value)}
    if key is None and len(numbers) == 1:
        return float(next(iter(numbers.values())))
    if key in numbers:
        return float(numbers[key])
    raise ConfigError(
        f"reward 'hf_metric': key = {key!r}, but {path!r} gives the numbers "
        f"{', '.join(numbers) or 'none'}; set key to one of them."
        f"{did_you_mean(str(key), numbers)}"
    )


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair fits into no table
