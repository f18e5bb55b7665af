"""What holds for every built-in text reward: any input, any order, any batch, any form of text."""

from __future__ import annotations

import pickle
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from instructrec.rewards import make_reward, reward_info

HOSTILE = [
    "",
    " ",
    "\x00",
    "\ud800",  # a lone surrogate, which UTF-8 cannot encode
    "e\u0301" * 50,
    "\u202eright to left",
    "今日は良い天気です",
    "👩‍👩‍👧‍👦",
    "\n\n\t",
    "%s {} \\N{bell} $(ls) </think> [[[",
]
MEGABYTES = ["a" * 1_000_000, "a b " * 250_000, "[" * 1_000_000, "1,111" * 200_000]


@dataclass(frozen=True)
class Case:
    """One reward, how it is made, and a column of values that it may find."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    column: str | None = "reference"
    values: tuple[Any, ...] = ("red sky", ["green", "the blue sky"], None, "1,000 km", "1000")
    pools: bool = False  # several references are counted together, as the metric is defined

    def score(self, texts: list[Any], values: list[Any]) -> list[float | None]:
        columns = {} if self.column is None else {self.column: values}
        return make_reward(self.name, **self.options)(["p"] * len(texts), texts, **columns)


CASES = [
    Case("exact_match", {"normalise": "numeric"}, values=("red", ["sky", "the"], None, "1,000")),
    Case("f1"),
    Case("contains", {"words": True}),
    Case("regex", {"pattern": r"\bs\w+y|\d$"}, column=None),
    Case("regex", column="pattern", values=("re", ["^the", "sky$"], None)),
    Case("fuzzy"),
    Case("fuzzy", {"method": "levenshtein"}),
    Case("numeric", values=("1,000 km", ["red", "1000", "5"], None)),
    Case("multiple_choice", values=("B", ["A", "(c)"], None)),
    Case("bleu", pools=True),
    Case("chrf"),
    Case("ter", pools=True),
    Case("rouge"),
    Case("rouge", {"variant": "rougeLsum", "stemmer": True, "tokenize": "latin"}),
    Case("meteor", {"synonyms": False}),
    Case("json_valid", column=None),
    Case("json_schema", {"schema": {"type": "number"}}, column=None),
    Case("json_schema", column="schema", values=({"type": "number"}, '{"minimum": 10}', None)),
    Case("xml_tags", {"tags": ["think"], "partial": True, "rest": "anywhere"}, column=None),
    Case("length", {"target": 1, "soft": 3}, column=None),
    Case("length", {"unit": "characters", "soft": 9}, column="target", values=(3, 8, None)),
    Case("repetition", {"n": 1}, column=None),
    Case("refusal", {"phrases": ["sky", "km"]}, column=None),
    Case("no_refusal", {"phrases": ["sky", "km"]}, column=None),
    Case("language", {"language": "en", "score": "probability"}, column=None),
    Case("language", {"among": ["de", "en", "fr"]}, column="language", values=("de", "en", None)),
]
REFERRING = [case for case in CASES if case.column]
ALL = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.options}")


def sample(case: Case, size: int) -> tuple[list[str], list[Any]]:
    rng = random.Random(0)
    words = ["red", "green", "blue", "sky", "", "the", "1000", "km", "B", "(A)"]
    words += ["<think>red</think>"]
    texts = [" ".join(rng.choices(words, k=rng.choice([0, 1, 1, 2, 5]))) for _ in range(size)]
    return texts, rng.choices(case.values, k=size)


@ALL
def test_a_batch_scores_like_its_samples_in_any_order(case):
    texts, values = sample(case, 60)
    batch = case.score(texts, values)
    assert batch == [case.score([t], [v])[0] for t, v in zip(texts, values, strict=True)]
    order = random.Random(1).sample(range(60), 60)
    assert case.score([texts[i] for i in order], [values[i] for i in order]) == [
        batch[i] for i in order
    ]
    assert len({score for score in batch if score is not None}) > 1


@ALL
def test_text_messages_and_parts_score_alike(case):
    texts, values = sample(case, 20)
    plain = case.score(texts, values)
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in texts]
    assert case.score(messages, values) == plain
    assert case.score(parts, values) == plain


@ALL
def test_hostile_text_gets_a_score_in_the_declared_range(case):
    low, high = reward_info(case.name).range
    for value in case.values:
        for score in case.score(HOSTILE, [value] * len(HOSTILE)):
            assert score is None or low <= score <= high


@pytest.mark.slow
@ALL
def test_a_megabyte_is_scored(case):
    for score in case.score(MEGABYTES, [case.values[0]] * len(MEGABYTES)):
        assert score is not None and 0.0 <= score <= 1.0


@pytest.mark.parametrize("case", REFERRING, ids=lambda case: f"{case.name}-{case.options}")
def test_no_reference_means_not_applicable_and_the_best_of_several_counts(case):
    assert case.score(["sky", "sky"], [None, None]) == [None, None]
    if case.pools or not any(isinstance(value, list) for value in case.values):
        return
    assert case.score(["sky", "sky"], [[], None]) == [None, None]
    texts, _ = sample(case, 30)
    several = next(value for value in case.values if isinstance(value, list))
    best = case.score(texts, [several] * 30)
    single = zip(*(case.score(texts, [value] * 30) for value in several), strict=True)
    assert best == [max(s for s in scores if s is not None) for scores in single]


@ALL
def test_it_travels_to_another_process_and_takes_what_a_trl_trainer_gives(case):
    reward = pickle.loads(pickle.dumps(make_reward(case.name, **case.options)))
    scores = reward(
        prompts=[[{"role": "user", "content": "Which colour?"}]],
        completions=[[{"role": "assistant", "content": "red sky"}]],
        completion_ids=[[1, 2]],
        family=["colour"],
        trainer_state=object(),
        log_extra=print,
        log_metric=print,
        environments=None,
        **({} if case.column is None else {case.column: [case.values[0]]}),
    )
    assert scores == case.score(["red sky"], [case.values[0]])
