"""The text space: any encodable string, cheap to copy, understood by Gymnasium's utilities."""

import copy
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import (
    batch_differing_spaces,
    batch_space,
    concatenate,
    create_empty_array,
    create_shared_memory,
    iterate,
    read_from_shared_memory,
    write_to_shared_memory,
)
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


@given(st.lists(st.text(max_size=6), max_size=4))
def test_texts_survive_json(texts):
    space = UnicodeText(6)
    written = json.dumps(space.to_jsonable(texts))
    assert space.from_jsonable(json.loads(written)) == texts


@pytest.mark.parametrize("mask", [(4, None), (None, None), (0, None)])
def test_probabilities_choose_a_length_as_masks_do(mask):
    space, twin = UnicodeText(6, seed=1), UnicodeText(6, seed=1)
    sample = space.sample(probability=mask)
    assert sample == twin.sample(mask=mask) and sample in space
    assert mask[0] is None or len(sample) == mask[0]
    with pytest.raises(ValueError, match="not both"):
        space.sample(mask=mask, probability=mask)


def test_every_character_of_the_sampling_set_is_drawn():
    space = UnicodeText(32, seed=0)
    drawn = {character for _ in range(500) for character in space.sample()}
    assert drawn == set(space.characters)


def test_samples_do_not_depend_on_the_hash_seed():
    code = "from instructrec.envs import UnicodeText; print(ascii(UnicodeText(seed=4).sample()))"
    printed = {
        subprocess.check_output(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    }
    assert len(printed) == 1 and len(printed.pop()) > 3


def test_a_copy_draws_what_the_original_draws():
    space = UnicodeText(seed=3)
    space.sample()
    twin = copy.deepcopy(space)
    assert [space.sample() for _ in range(5)] == [twin.sample() for _ in range(5)]
    space.seed(9)
    twin.seed(9)
    assert space.sample() == twin.sample()


@pytest.mark.parametrize(
    ("bounds", "error"),
    [({"max_length": -1}, ValueError), ({"max_length": 1, "min_length": 2}, ValueError)],
)
def test_impossible_bounds_are_refused(bounds, error):
    with pytest.raises(error):
        UnicodeText(**bounds)


@given(st.lists(st.text(max_size=5), min_size=1, max_size=4))
def test_batches_are_put_together_and_taken_apart(texts):
    space = UnicodeText(5)
    batch = concatenate(space, texts, create_empty_array(space, n=len(texts)))
    batched = batch_space(space, len(texts))
    assert batch in batched
    assert list(iterate(batched, batch)) == texts


@given(st.lists(st.text(max_size=5), min_size=3, max_size=3))
def test_shared_memory_shows_what_was_written_last(texts):
    space = UnicodeText(5)
    memory = create_shared_memory(space, n=3)
    shown = read_from_shared_memory(space, memory, n=3)
    for i, text in enumerate(["old", "old", "old"]):
        write_to_shared_memory(space, i, text, memory)
    before = copy.deepcopy(shown)
    for i, text in enumerate(texts):
        write_to_shared_memory(space, i, text, memory)
    assert before == ("old", "old", "old")
    assert shown in batch_space(space, 3)
    assert shown == tuple(texts) and list(shown) == texts and shown[1] == texts[1]
    for plain in (copy.deepcopy(shown), pickle.loads(pickle.dumps(shown))):
        assert type(plain) is tuple and plain == tuple(texts)


def test_text_inside_other_spaces_goes_through_shared_memory():
    space = spaces.Dict(message=UnicodeText(9), turn=spaces.Discrete(3))
    memory = create_shared_memory(space, n=2)
    shown = read_from_shared_memory(space, memory, n=2)
    for i, message in enumerate(["é", "中\x00x"]):
        write_to_shared_memory(space, i, {"message": message, "turn": i}, memory)
    assert copy.deepcopy(shown)["message"] == ("é", "中\x00x")


def test_a_batch_of_different_spaces_takes_its_generator_from_the_first():
    batches = [batch_differing_spaces([UnicodeText(2, seed=5)] * 2) for _ in range(2)]
    states = [batch.np_random.bit_generator.state for batch in batches]
    assert states[0] == states[1]


def test_batches_of_equal_and_of_different_spaces_hold_tuples_of_text():
    assert ("é", "", "x") in batch_space(UnicodeText(4), 3)
    different = batch_differing_spaces([UnicodeText(1), UnicodeText(3)])
    assert ("é", "abc") in different and ("ab", "abc") not in different
