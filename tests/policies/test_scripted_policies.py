from __future__ import annotations

import json
from pathlib import Path

import pytest

from instructrec.errors import DataError, PolicyError
from instructrec.policies.base import StopReason
from instructrec.policies.scripted import (
    ConstantPolicy,
    EmptyPolicy,
    OraclePolicy,
    RandomPolicy,
    ReplayPolicy,
)

PROMPTS = ["q1", "q2", "q3"]


def test_the_oracle_answers_the_first_reference() -> None:
    columns = {"reference": ["a", ["b", "c"], ("d",)]}
    assert OraclePolicy().respond(PROMPTS, columns).texts == ["a", "b", "d"]


def test_the_oracle_without_its_column_names_those_that_exist() -> None:
    with pytest.raises(PolicyError, match=r"'reference', but these instructions have answer, id"):
        OraclePolicy().respond(PROMPTS, {"id": [1, 2, 3], "answer": ["a", "b", "c"]})
    with pytest.raises(PolicyError, match="row 1 of the column"):
        OraclePolicy().respond(PROMPTS, {"reference": ["a", [], "c"]})


def test_random_answers_are_references_of_the_batch_and_follow_the_seed() -> None:
    columns = {"reference": ["a", "b", "a"] * 20}
    first = RandomPolicy(seed=1).respond(PROMPTS * 20, columns).texts
    assert set(first) == {"a", "b"}
    assert RandomPolicy(seed=1).respond(PROMPTS * 20, columns).texts == first
    assert RandomPolicy(seed=2).respond(PROMPTS * 20, columns).texts != first


def test_random_answers_depend_neither_on_batches_nor_on_breaks() -> None:
    references = [f"r{i}" for i in range(40)]
    prompts = [f"q{i // 2} \ud800" for i in range(40)]  # each twice, and no text of its own

    def answers(size: int, start: int = 0) -> list[str]:
        policy = RandomPolicy(seed=3)
        policy.begin({"reference": references})
        policy.skip(prompts[:start])
        batches = [slice(first, first + size) for first in range(start, 40, size)]
        found = [policy.respond(prompts[b], {"reference": references[b]}).texts for b in batches]
        return [text for batch in found for text in batch]

    whole = answers(40)
    assert answers(1) == whole and answers(7) == whole and answers(7, start=13) == whole[13:]
    assert len(set(whole)) > 15 and whole[::2] != whole[1::2]


def test_random_answers_without_references_are_words() -> None:
    assert all(RandomPolicy().respond(PROMPTS).texts)
    assert set(RandomPolicy(words=["x"]).respond(PROMPTS).texts) == {"x"}


def test_constant_and_empty_policies_say_one_thing() -> None:
    assert ConstantPolicy("yes").respond(PROMPTS).texts == ["yes"] * 3
    responses = EmptyPolicy().respond(PROMPTS)
    assert responses.texts == [""] * 3
    assert responses.stop_reasons == [StopReason.EOS] * 3


def write_rows(file: Path, *rows: object) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_replay_gives_recorded_samples_in_order_and_starts_again(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "m"}]
    file = write_rows(
        tmp_path / "eval.jsonl",
        {"prompt": "q1", "response": "one", "stop_reason": "length"},
        {"prompt": messages, "response": "other"},
        {"prompt": "q1", "response": "two"},
    )
    responses = ReplayPolicy(file).respond(["q1", "q1", messages, "q1"])
    assert responses.texts == ["one", "two", "other", "one"]
    assert responses.stop_reasons[:2] == [StopReason.LENGTH, StopReason.EOS]


def test_replay_goes_on_behind_what_was_given_before(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "response": text} for text in ("one", "two", "three")]
    policy = ReplayPolicy(write_rows(tmp_path / "eval.jsonl", *rows))
    policy.skip(["q", "q"])
    assert policy.respond(["q", "q"]).texts == ["three", "one"]


def test_replay_of_an_unknown_prompt_is_an_error(tmp_path: Path) -> None:
    policy = ReplayPolicy(write_rows(tmp_path / "eval.jsonl", {"prompt": "a", "response": "b"}))
    with pytest.raises(PolicyError, match=r"no response to the prompt 'q1'.*\(1 prompts\)"):
        policy.respond(["q1"])


@pytest.mark.parametrize(
    "bad",
    [
        "{broken",
        "[1]",
        '{"prompt": "a"}',
        '{"response": "b"}',
        '{"prompt": 3, "response": "b"}',
        '{"prompt": "a", "response": "b", "stop_reason": "bored"}',
    ],
)
def test_a_malformed_line_is_named_by_file_and_number(tmp_path: Path, bad: str) -> None:
    file = tmp_path / "eval.jsonl"
    file.write_text('{"prompt": "a", "response": "b"}\n\n' + bad + "\n")
    with pytest.raises(DataError, match=r"eval.jsonl, line 3: "):
        ReplayPolicy(file)


def test_a_missing_replay_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the responses in .*none.jsonl"):
        ReplayPolicy(tmp_path / "none.jsonl")
