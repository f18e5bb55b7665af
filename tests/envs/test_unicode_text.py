"""The text space: any encodable string, cheap to copy, understood by Gymnasium's utilities."""

import pickle

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_differing_spaces, batch_space
from hypothesis import given
from hypothesis import strategies as st

from instructrec.envs.spaces import UnicodeText

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


@given(ANY_TEXT)
def test_contains_exactly_the_strings_that_utf8_can_encode(text):
    try:
        text.encode("utf-8")
        encodable = True
    except UnicodeEncodeError:
        encodable = False
    assert UnicodeText().contains(text) is encodable


@pytest.mark.parametrize("text", ["", "Hello world", "é", "日本語", "😀", "\x00\n\t", "a" * 10])
def test_ordinary_text_is_contained(text):
    assert text in UnicodeText(10) or len(text) > 10


@pytest.mark.parametrize("value", ["\ud800", "ok \udfff", b"bytes", None, 3, ["a"]])
def test_lone_surrogates_and_other_types_are_not_contained(value):
    assert value not in UnicodeText()


def test_length_bounds_are_inclusive_and_count_characters():
    space = UnicodeText(3, min_length=2)
    assert "😀😀" in space and "abc" in space
    assert "a" not in space and "abcd" not in space


def test_samples_are_members_and_follow_the_seed():
    space, twin = UnicodeText(8, min_length=1, seed=3), UnicodeText(8, min_length=1, seed=3)
    samples = [space.sample() for _ in range(50)]
    assert all(sample in space for sample in samples)
    assert samples == [twin.sample() for _ in range(50)]
    assert len(set(samples)) > 10


def test_sample_takes_a_length_and_refuses_character_masks():
    assert len(UnicodeText(9).sample(mask=(5, None))) == 5
    with pytest.raises(ValueError, match="character masks"):
        UnicodeText(9).sample(mask=(5, np.ones(3, dtype=np.int8)))
    with pytest.raises(ValueError, match="outside"):
        UnicodeText(9).sample(mask=(10, None))


def test_spaces_are_equal_when_their_bounds_are():
    assert UnicodeText(5) == UnicodeText(5, seed=1)
    assert UnicodeText(5) != UnicodeText(6)
    assert UnicodeText(5) != spaces.Text(5, min_length=0)


def test_pickle_is_small_and_repr_is_short():
    space = UnicodeText()
    assert len(pickle.dumps(space)) < 10_000
    assert pickle.loads(pickle.dumps(space)) == space
    assert repr(space) == "UnicodeText(0, 65536)"
    assert isinstance(space, spaces.Text)


@given(st.text(max_size=6))
def test_flatten_and_unflatten_give_the_text_back(text):
    space = UnicodeText(6)
    flat = spaces.utils.flatten(space, text)
    assert flat in spaces.utils.flatten_space(space)
    assert spaces.utils.unflatten(space, flat) == text


def test_batches_of_equal_and_of_different_spaces_hold_tuples_of_text():
    assert ("é", "", "x") in batch_space(UnicodeText(4), 3)
    different = batch_differing_spaces([UnicodeText(1), UnicodeText(3)])
    assert ("é", "abc") in different and ("ab", "abc") not in different
