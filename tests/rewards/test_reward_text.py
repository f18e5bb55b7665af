"""Reading text out of every form in which prompts, completions and references arrive."""

from __future__ import annotations

import numpy as np
import pytest

from instructrec.errors import ConfigError, DataError
from instructrec.rewards.text import (
    completion_messages,
    completion_text,
    normalise_text,
    prompt_messages,
    prompt_text,
    reference_texts,
)


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("plain", "plain"),
        ("", ""),
        ([], ""),
        ({"role": "assistant", "content": "one"}, "one"),
        ([{"role": "assistant", "content": "one"}], "one"),
        ([{"content": "no role"}], "no role"),
        ([{"role": "assistant", "content": None}], ""),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, "b"]}], "ab"),
        ([{"role": "assistant", "content": [{"type": "text", "text": None}, "b"]}], "b"),
        (
            [{"role": "assistant", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}],
            "x",
        ),
        (
            [
                {"role": "assistant", "content": "call"},
                {"role": "tool", "content": "result"},
                {"role": "assistant", "content": "answer"},
            ],
            "call\nanswer",
        ),
    ],
)
def test_every_form_of_a_completion_becomes_its_text(completion, text):
    assert completion_text(completion) == text


@pytest.mark.parametrize("completion", [5, None, ["text"], [{"role": "assistant"}], b"bytes"])
def test_a_completion_of_another_type_is_refused_with_its_type(completion):
    with pytest.raises(DataError, match=f"a completion is .*{type(completion).__name__}"):
        completion_text(completion)


def test_a_message_with_a_number_as_content_is_refused():
    with pytest.raises(DataError, match=r"content of a message is '5' \(int\)"):
        completion_text([{"role": "assistant", "content": 5}])


def test_text_and_messages_are_converted_into_each_other():
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert prompt_text("Hi") == "Hi"
    assert prompt_text([{"role": "user", "content": "Hi"}]) == "Hi"
    assert prompt_text(conversation) == "system: Be brief.\nuser: Hi"
    assert prompt_messages("Hi") == [{"role": "user", "content": "Hi"}]
    assert prompt_messages(tuple(conversation)) == conversation
    assert completion_messages("Yo") == [{"role": "assistant", "content": "Yo"}]


@pytest.mark.parametrize(
    ("how", "left", "right", "equal"),
    [
        ("none", "a", "a ", False),
        ("strip", "a", " a\n", True),
        ("strip", "a", "A", False),
        ("casefold", "STRASSE", "straße", True),
        ("casefold", "caf\u00e9", "CAFE\u0301 ", True),
        ("casefold", "a cat", "cat", False),
        ("squad", "The  cat!", "cat", True),
        ("squad", "an U.S. thing", "us thing", True),
        ("squad", "theme", "me", False),
    ],
)
def test_normalisations_ignore_what_they_say_and_no_more(how, left, right, equal):
    assert (normalise_text(left, how) == normalise_text(right, how)) is equal


def test_an_unknown_normalisation_is_refused_with_a_suggestion():
    with pytest.raises(
        ConfigError, match=r"none, strip, casefold, squad.* Did you mean 'casefold'"
    ):
        normalise_text("a", "casefolded")


def test_references_are_one_text_or_several_or_none():
    assert reference_texts("a", "r", 0) == ["a"]
    assert reference_texts("", "r", 0) == [""]
    assert reference_texts(("a", "b"), "r", 0) == ["a", "b"]
    assert reference_texts(np.array(["a", "b"]), "r", 0) == ["a", "b"]
    assert reference_texts(None, "r", 0) is None
    assert reference_texts([], "r", 0) is None


@pytest.mark.parametrize("reference", [42, [1, 2], {"a": 1}])
def test_a_reference_that_is_not_text_names_reward_and_sample(reference):
    with pytest.raises(DataError, match=r"reward 'bleu': the reference of sample 3 .* as text"):
        reference_texts(reference, "bleu", 3)
