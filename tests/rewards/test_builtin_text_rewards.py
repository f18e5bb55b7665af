"""exact_match and bleu: known answers, hostile text, and no dependence on the rest of the batch."""

from __future__ import annotations

import random

import pytest
from sacrebleu.metrics import BLEU

from instructrec.errors import ConfigError, DataError
from instructrec.rewards import make_reward
from instructrec.rewards.exact import exact_match
from instructrec.rewards.overlap import bleu

HOSTILE = [
    "",
    " ",
    "\x00",
    "\ud800",  # a lone surrogate, which UTF-8 cannot encode
    "e\u0301" * 50,
    "\u202eright to left",
    "今日は良い天気です",
    "👩‍👩‍👧‍👦",
    "a" * 20_000,
    "\n\n\t",
    "%s {} \\N{bell} $(ls)",
]


@pytest.mark.parametrize(
    ("completion", "reference", "options", "score"),
    [
        ("Paris", "Paris", {}, 1.0),
        (" Paris\n", "Paris", {}, 1.0),
        ("paris", "Paris", {}, 0.0),
        ("Paris.", "Paris", {}, 0.0),
        (" Paris", "Paris", {"normalise": "none"}, 0.0),
        ("PARIS", "paris", {"normalise": "casefold"}, 1.0),
        ("The Paris!", "paris", {"normalise": "squad"}, 1.0),
        ("b", ["a", "b"], {}, 1.0),
        ("c", ["a", "b"], {}, 0.0),
        ("", "", {}, 1.0),
        ([{"role": "assistant", "content": "Paris"}], "Paris", {}, 1.0),
        ("x", None, {}, None),
        ("x", [], {}, None),
    ],
)
def test_exact_match_gives_the_known_answer(completion, reference, options, score):
    assert exact_match([completion], [reference], **options) == [score]


SENTENCES = [
    ("the cat sat on the mat", ["the cat sat on the mat"]),
    ("the cat sat on a mat", ["the cat sat on the mat"]),
    ("the the the the", ["the cat is here"]),
    ("a quick brown fox", ["the quick brown fox jumps", "a brown fox"]),
    ("Paris", ["Paris"]),
    ("It is Paris.", ["Paris"]),
    ("completely different", ["nothing shared here"]),
    ("", ["something"]),
    ("Das ist gut!", ["Das ist sehr gut."]),
]


@pytest.mark.parametrize("tokenize", ["13a", "intl", "char", "zh", "none"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_bleu_equals_sacrebleu(tokenize, lowercase):
    oracle = BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)
    expected = [oracle.sentence_score(text, refs).score / 100 for text, refs in SENTENCES]
    got = bleu(
        [text for text, _ in SENTENCES],
        [refs for _, refs in SENTENCES],
        tokenize=tokenize,
        lowercase=lowercase,
    )
    assert got == pytest.approx(expected, abs=1e-12)
    assert all(0.0 <= score <= 1.0 for score in got)


def test_a_hand_computed_bleu():
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; equal lengths: no penalty.
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu(["the cat sat on a mat"], ["the cat sat on the mat"]) == pytest.approx([expected])


@pytest.mark.parametrize("answer", ["Paris", "New York", "to be or", "今日", "42"])
def test_a_perfect_short_answer_has_a_bleu_of_exactly_one(answer):
    assert bleu([answer], [answer]) == [1.0]


def test_blank_references_are_left_out_of_bleu():
    assert bleu(["Paris"] * 4, ["", ["", " "], None, ["", "Paris"]]) == [None, None, None, 1.0]


def test_characters_make_bleu_useful_without_spaces():
    text, reference = ["今日は良い天気です"], ["今日は悪い天気です"]
    assert bleu(text, reference) == [0.0]
    assert bleu(text, reference, tokenize="char")[0] > 0.3


@pytest.mark.parametrize("reward", [exact_match, bleu])
def test_a_batch_scores_like_its_samples_in_any_order(reward):
    rng = random.Random(0)
    words = ["red", "green", "blue", "sky", "", "the"]
    texts = [" ".join(rng.choices(words, k=rng.randrange(6))) for _ in range(60)]
    references = [" ".join(rng.choices(words, k=rng.randrange(6))) for _ in range(60)]
    batch = reward(texts, references)
    singles = [reward([t], [r])[0] for t, r in zip(texts, references, strict=True)]
    order = rng.sample(range(60), 60)
    assert batch == singles
    assert reward([texts[i] for i in order], [references[i] for i in order]) == [
        batch[i] for i in order
    ]


@pytest.mark.parametrize("reward", [exact_match, bleu])
def test_hostile_text_gets_a_score_in_range(reward):
    for reference in [*HOSTILE, "Paris"]:
        for score in reward(HOSTILE, [reference] * len(HOSTILE)):
            assert score is None or 0.0 <= score <= 1.0


@pytest.mark.parametrize("reward", [exact_match, bleu])
def test_arguments_of_a_trl_trainer_are_accepted(reward):
    completions = [
        [{"role": "assistant", "content": "Paris"}],
        [{"role": "assistant", "content": "x"}],
    ]
    scores = reward(
        prompts=[[{"role": "user", "content": "Capital of France?"}]] * 2,
        completions=completions,
        completion_ids=[[1, 2], [3]],
        reference=["Paris", "Paris"],
        family=["capital", "capital"],
        trainer_state=object(),
        log_extra=lambda column, values: None,
        log_metric=lambda name, value: None,
        environments=None,
    )
    assert scores == [1.0, 0.0]


def test_wrong_options_and_references_are_refused():
    with pytest.raises(ConfigError, match=r"tokenize = '13b'.*Did you mean '13a'"):
        bleu(["a"], ["a"], tokenize="13b")
    with pytest.raises(ConfigError, match=r"normalise = 'lower'"):
        exact_match(["a"], ["a"], normalise="lower")
    with pytest.raises(DataError, match=r"'exact_match': the reference of sample 1 is 7"):
        exact_match(["a", "7"], ["a", 7])
    with pytest.raises(DataError, match=r"'bleu': the reference of sample 0"):
        bleu(["a"], [[1]])


def test_wrong_options_are_refused_before_anything_is_scored():
    with pytest.raises(ConfigError, match=r"option tokenize = '13b'.*expected one of 13a, intl"):
        make_reward("bleu", tokenize="13b")
    with pytest.raises(ConfigError, match=r"option normalise = 'squat'.*Did you mean 'squad'"):
        make_reward("exact_match", normalise="squat")
    with pytest.raises(ConfigError, match=r"option lowercase = 'yes' .*expected bool"):
        make_reward("bleu", lowercase="yes")
