"""exact_match, f1, contains, regex and fuzzy: known answers and refused options."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

from instructrec.errors import ConfigError, DataError
from instructrec.rewards import Status, make_reward, make_rewards
from instructrec.rewards.exact import exact_match, f1
from instructrec.rewards.matching import Regex, contains, fuzzy


@pytest.mark.parametrize(
    ("completion", "reference", "score"),
    [
        ("1,000", "1000.0", 1.0),
        ("1e3", "1000", 1.0),
        (" 42. ", "42", 1.0),
        ("1/2", "0.5", 1.0),
        ("5.0 km", "5 km", 1.0),
        ("5 km", "5 miles", 0.0),
        ("50%", "50", 0.0),
        ("-3", "3", 0.0),
        ("It is 42", "42", 0.0),
        ("Paris ", "Paris", 1.0),
        ("paris", "Paris", 0.0),
    ],
)
def test_numbers_match_however_they_are_written(completion, reference, score):
    assert exact_match([completion], [reference], normalise="numeric") == [score]


@pytest.mark.parametrize(
    ("completion", "reference", "score"),
    [
        # 3 of 4 tokens (the article is dropped), 3 of 3: 2 · 3/4 · 1 / (3/4 + 1) = 6/7
        ("the quick brown red fox", "quick brown fox!", 6 / 7),
        # a token counts as often as it occurs on both sides: 1 of 3, 1 of 1
        ("yes yes yes", "yes", 0.5),
        ("Denver Broncos", "the Denver Broncos.", 1.0),
        ("one two", "three four", 0.0),
        ("anything", "", 0.0),
        ("", "", 1.0),
        ("The", "an", 1.0),  # articles alone leave no tokens on either side
    ],
)
def test_f1_gives_the_hand_computed_answer(completion, reference, score):
    assert f1([completion], [reference]) == [pytest.approx(score)]


def test_f1_counts_characters_where_there_are_no_spaces():
    assert f1(["今日は良い"], ["今日は 悪い"]) == [0.0]
    assert f1(["今日は良い"], ["今日は 悪い"], tokens="characters") == [pytest.approx(4 / 5)]


@given(st.lists(st.sampled_from("abcd"), max_size=6), st.lists(st.sampled_from("abcd"), max_size=6))
def test_f1_does_not_depend_on_order_or_side(left, right):
    one, other = " ".join(left), " ".join(right)
    forward = f1([one], [other], normalise="strip")
    assert forward == f1([other], [one], normalise="strip")
    assert forward == f1([" ".join(reversed(left))], [other], normalise="strip")
    assert (forward == [1.0]) is (sorted(left) == sorted(right))


@pytest.mark.parametrize(
    ("completion", "reference", "options", "score"),
    [
        ("I live in paris.", "Paris", {}, 1.0),
        ("I live in paris.", "Paris", {"normalise": "none"}, 0.0),
        ("concatenate", "cat", {}, 1.0),
        ("concatenate", "cat", {"words": True}, 0.0),
        ("concatenate a cat", "cat", {"words": True}, 1.0),
        ("(cat)", "cat", {"words": True}, 1.0),
        ("C++ code", "c++", {"words": True}, 1.0),
        ("a b", ["b", "c"], {}, 1.0),
        ("a b", ["b", "c"], {"need": "all"}, 0.0),
        ("a b c", ["b", "c"], {"need": "all"}, 1.0),
        ("a b", ["b", "c"], {"need": "share"}, 0.5),
        ("a", "", {}, None),
        ("a", ["", "a"], {"need": "all"}, 1.0),
        ("anything", "The", {"normalise": "squad"}, None),
    ],
)
def test_contains_gives_the_known_answer(completion, reference, options, score):
    assert contains([completion], [reference], **options) == [score]


WORDS = st.lists(st.sampled_from(["red", "green", "Blue", "sky", "é"]), max_size=5).map(" ".join)


@given(WORDS, WORDS.filter(bool))
def test_fuzzy_equals_rapidfuzz(response, answer):
    expected = {
        "ratio": fuzz.ratio(response, answer) / 100,
        "token_sort": fuzz.token_sort_ratio(response, answer) / 100,
        "levenshtein": Levenshtein.normalized_similarity(response, answer),
    }
    got = {m: fuzzy([response], [answer], method=m, normalise="none")[0] for m in expected}
    assert got == pytest.approx(expected)


def test_fuzzy_by_hand():
    # kitten -> sitting: 3 edits of 7; 3 substitutions are worth 2 each: 13 letters, 5 changes.
    assert fuzzy(["kitten"], ["sitting"], method="levenshtein") == [pytest.approx(4 / 7)]
    assert fuzzy(["kitten"], ["sitting"]) == [pytest.approx(1 - 5 / 13)]
    assert fuzzy(["b a"], ["a b"], method="token_sort") == [1.0]
    assert fuzzy(["ABC"], [["abd", "abc"]], normalise="casefold") == [1.0]


def test_nothing_is_not_alike_to_nothing():
    assert fuzzy(["", ""], ["", [" ", "a"]]) == [None, 0.0]


@pytest.mark.parametrize(
    ("pattern", "mode", "text", "score"),
    [
        (r"\d+", "search", "It is 42.", 1.0),
        (r"\d+", "fullmatch", "It is 42.", 0.0),
        (r"\d+", "fullmatch", " 42\n", 1.0),
        (r"(?i)paris", "search", "PARIS", 1.0),
        (r"a.b", "search", "a\nb", 0.0),
        (r"(?s)a.b", "search", "a\nb", 1.0),
        (r"", "fullmatch", "", 1.0),
    ],
)
def test_a_pattern_is_found_or_not(pattern, mode, text, score):
    assert Regex(pattern, mode=mode)([text]) == [score]


def test_each_sample_may_have_its_own_pattern():
    rewards = make_rewards({"regex": {"options": {"pattern_column": "wanted"}}})
    batch = rewards.score(["p"] * 3, ["abc"] * 3, {"wanted": ["b", ["x", "c"], None]})
    assert batch.parts["regex"][:2].tolist() == [1.0, 1.0]
    assert batch.status["regex"][2] is Status.NOT_APPLICABLE


def test_the_option_is_stronger_than_the_column():
    assert make_reward("regex", pattern="b")(["p"], ["abc"], pattern=["x"]) == [1.0]


def test_a_pattern_that_explodes_fails_instead_of_hanging():
    rewards = make_rewards(
        {"regex": {"options": {"pattern": r"^(?:a|aa)+$", "timeout": 0.05}}},
    )
    start = time.perf_counter()
    batch = rewards.score(["p"] * 3, ["aaa", "a" * 500 + "b", "b"], {})
    assert time.perf_counter() - start < 30
    assert batch.parts["regex"][[0, 2]].tolist() == [1.0, 0.0]
    assert batch.status["regex"][1] is Status.RAISED
    assert "longer than 0.05 s on a response of 501 characters" in batch.messages["regex"][1]


def test_wrong_options_of_match_rewards_are_refused():
    with pytest.raises(ConfigError, match=r"pattern = '\(': not a regular expression"):
        make_reward("regex", pattern="(")
    with pytest.raises(ConfigError, match=r"timeout = 0: expected seconds above 0"):
        make_reward("regex", pattern="a", timeout=0)
    with pytest.raises(ConfigError, match=r"nothing to look for: set its option pattern"):
        make_reward("regex")(["p"], ["a"])
    with pytest.raises(DataError, match=r"pattern of sample 1, .*'\('.*: not a regular expression"):
        Regex()(["a", "b"], pattern=["a", "("])
    with pytest.raises(ConfigError, match=r"method = 'ration'.*Did you mean 'ratio'"):
        fuzzy(["a"], ["a"], method="ration")
    with pytest.raises(ConfigError, match=r"need = 'some'.*expected one of any, all, share"):
        contains(["a"], ["a"], need="some")
    with pytest.raises(ConfigError, match=r"tokens = 'chars'"):
        f1(["a"], ["a"], tokens="chars")
