"""Corpus metrics of an evaluation: BLEU, chrF and others over all its responses together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from instructrec.envs.tasks.base import Instruction, Task
from instructrec.errors import DataError, did_you_mean
from instructrec.experiments.jsonl import Row
from instructrec.experiments.stats import Interval, mean_interval, sums_interval
from instructrec.rewards.hf_metric import check_corpus_names, corpus_tallies
from instructrec.rewards.text import reference_texts

References = Mapping[str, Sequence[str]]
"""Id of an instruction -> its expected answers, one or several; only of those that have some."""


@dataclass(frozen=True)
class CorpusMetrics:
    """Which corpus metrics are measured, and against which answers.

    Raises:
        ConfigError: There is no such metric, or the package ``evaluate`` is not installed.
    """

    names: tuple[str, ...] = ()
    """Of the metrics that come with this package: bleu, chrf, exact_match, rouge."""
    references: str = "reference"
    """Column with the expected answers, one text or several for each instruction."""

    def __post_init__(self) -> None:
        check_corpus_names(self.names)

    def check_columns(self, available: Sequence[str]) -> None:
        """Raises DataError when the column of the expected answers is not among ``available``."""
        if self.names and self.references not in available:
            raise DataError(
                f"corpus metrics need the column {self.references!r}, which the data lacks."
                f"{did_you_mean(self.references, available)} Columns: "
                f"{', '.join(sorted(available)) or 'none'}. To read another one, set "
                "corpus_references."
            )

    def read(self, task: Task, instructions: Sequence[Instruction]) -> References:
        """Returns the expected answers; of no instruction where no metric is wanted.

        Args:
            task: Where the instructions come from.
            instructions: Those that will be measured.

        Raises:
            DataError: The column is missing, holds no answers, or something else than text.
        """
        self.check_columns(task.columns)
        if not self.names:
            return {}
        answers = {
            item.id: listed
            for i, item in enumerate(instructions)
            if (listed := reference_texts(item.columns.get(self.references), "corpus_metrics", i))
        }
        if not answers:
            raise DataError(
                f"corpus metrics: none of {len(instructions)} instructions has an expected answer "
                f"in the column {self.references!r}."
            )
        return answers

    def intervals(
        self, rows: Sequence[Row], clusters: Sequence[str], references: References
    ) -> dict[str, Interval]:
        """Computes the metrics over all rows that have expected answers.

        Args:
            rows: Rows of an evaluation, at least one of them with expected answers.
            clusters: Label of each row's cluster; whole clusters are resampled.
            references: What ``read`` returned.

        Returns:
            Value -> its number, in [0, 1], with a 95 % interval; ``rouge`` has four values.
        """
        if not self.names:
            return {}
        kept = [i for i, row in enumerate(rows) if row["id"] in references]
        labels = [clusters[i] for i in kept]
        tallies = corpus_tallies(
            [rows[i]["response"] for i in kept],
            [references[rows[i]["id"]] for i in kept],
            self.names,
        )
        return {
            name: mean_interval(tally.rows, labels)
            if tally.score is None
            else sums_interval(tally.rows, tally.score, labels)
            for name, tally in tallies.items()
        }


NO_CORPUS_METRICS = CorpusMetrics()
"""Nothing is measured over the corpus."""
