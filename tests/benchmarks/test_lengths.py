"""Responses of different lengths: the same for a prompt on every side, and checked by the gate."""

from __future__ import annotations

from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import pytest
import torch

from benchmarks import gate, limits, side_generate
from benchmarks.own_lengths import AtTarget
from benchmarks.parts import OURS, PARTS
from benchmarks.prepare import prepare
from benchmarks.side_ours import WatchedDecoder, run
from benchmarks.summary import markdown, side_summary
from benchmarks.workload import (
    LOG_NORMAL,
    GateError,
    Prompts,
    Report,
    Update,
    Workload,
    answered,
    asked_prompts,
    check_update,
    expected_answers,
    target_lengths,
)


def many(number: int) -> Prompts:
    """Prompts of one token each, the largest first."""
    ids = [[number - i] for i in range(number)]
    return Prompts(["?"] * number, ids, ["?"] * number, [], [])


WORK = Workload("", "", episodes=400, response_length=64, lengths=LOG_NORMAL, dtype="float32")


def test_lengths_are_log_normal_up_to_the_longest_and_the_same_every_time() -> None:
    targets = target_lengths(WORK, many(400))
    found = list(targets.values())
    assert targets == target_lengths(WORK, many(400)) and len(found) == 400
    assert min(found) >= 1 and max(found) == 64
    assert fmean(found) == pytest.approx(0.4 * 64, rel=0.1)
    assert sorted(found)[200] < fmean(found)  # more short ones than long ones
    assert found != list(target_lengths(replace(WORK, seed=1), many(400)).values())


def test_few_responses_have_the_longest_among_them_and_none_is_empty() -> None:
    for longest in (1, 8, 64):
        work = replace(WORK, episodes=4, response_length=longest)
        found = target_lengths(work, many(4)).values()
        assert max(found) == longest and min(found) >= 1
    with pytest.raises(ValueError, match="lengths 'normal': expected 'equal' or 'log-normal'"):
        target_lengths(replace(WORK, lengths="normal"), many(400))


def test_all_lengths_are_the_same_where_nothing_else_is_asked_for() -> None:
    assert set(target_lengths(replace(WORK, lengths="equal"), many(400)).values()) == {64}


FEW = replace(WORK, episodes=4, epochs=1)
TARGETS = target_lengths(FEW, many(4))


def update(answers: list[tuple[list[int], int]]) -> Update:
    """An update that gave such answers."""
    found = answered(*zip(*answers, strict=True))
    return Update(1.0, {}, found.response_lengths, found.prompts_hash, 1, 0.5)


def test_a_length_is_held_against_its_own_prompt_whatever_the_order() -> None:
    expected = expected_answers(FEW, many(4))
    right = [(list(prompt), length) for prompt, length in TARGETS.items()]
    assert len(set(TARGETS.values())) > 1
    check_update(FEW, update(right), expected)
    check_update(FEW, update(right[::-1]), expected)
    lengths = list(TARGETS.values())
    others = zip(TARGETS, lengths[1:] + lengths[:1], strict=True)
    moved = [(list(prompt), length) for prompt, length in others]
    with pytest.raises(GateError, match=r"responses do not end where they have to, e\.g\. \d+ tok"):
        check_update(FEW, update(moved), expected)


def test_responses_to_one_prompt_have_one_length() -> None:
    work = replace(FEW, episodes=8, generations=2)
    expected = expected_answers(work, many(4))
    assert sorted(expected.response_lengths) == sorted([*TARGETS.values()] * 2)
    once = [(list(prompt), length) for prompt, length in TARGETS.items()]
    check_update(work, update(once + once), expected)


def test_rows_end_at_their_targets() -> None:
    ends = AtTarget(torch.tensor([1, 3]), width=5)
    assert [ends(torch.zeros(2, 5 + new), ()).tolist() for new in (1, 2, 3)] == [
        [True, False],
        [True, False],
        [True, True],
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """The tiny model in float32, eight prompts, and a length for each."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare("tiny", folder, num_prompts=8, response_length=8)
    return Workload(
        str(folder / "model"),
        str(folder / "prompts.json"),
        episodes=8,
        response_length=8,
        lengths=LOG_NORMAL,
        epochs=2,
        micro_batch=4,
        dtype="float32",
    )


def wanted(work: Workload) -> list[int]:
    """The lengths of a report, in the order of the prompts' tokens."""
    return expected_answers(work, Prompts.read(work.prompts)).response_lengths


def test_ours_ends_each_response_at_its_target(tiny: Workload) -> None:
    report = run(tiny)
    assert len(set(wanted(tiny))) > 2
    assert [update.response_lengths for update in report.updates] == [wanted(tiny)] * 2
    assert [update.optimizer_steps for update in report.updates] == [2, 2]


def test_decoding_by_transformers_ends_each_response_at_its_target(tiny: Workload) -> None:
    work = replace(tiny, epochs=0, kl_coef=0.0)
    for report in (run(work), side_generate.run(work)):
        assert [update.response_lengths for update in report.updates] == [wanted(tiny)] * 2


def test_a_side_that_goes_on_behind_its_targets_is_refused(
    tiny: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        WatchedDecoder, "most_tokens", lambda self, prompt, sampling: sampling.max_new_tokens
    )
    with pytest.raises(GateError, match="do not end where they have to"):
        run(tiny)


def test_the_passes_over_different_lengths_agree_with_plain_ones(tiny: Workload) -> None:
    errors = gate.measure(tiny)
    gate.check(tiny, errors)
    assert max(asdict(errors).values()) < 1e-5


def test_the_limit_counts_the_tokens_that_are_asked_for(tiny: Workload) -> None:
    prompts = Prompts.read(tiny.prompts)
    read = sum(map(len, asked_prompts(tiny, prompts)))
    found = limits.limits(OURS, tiny)
    assert found["tokens"] == read + sum(wanted(tiny))
    equal = limits.limits(OURS, replace(tiny, lengths="equal"))
    assert equal["tokens"] == read + 8 * 8
    assert found["flops"]["update"] < equal["flops"]["update"]


def test_a_table_names_lengths_where_they_differ() -> None:
    limit: dict[str, Any] = {"matrix_flops_per_s": 1.0, "peak_flops_per_s": 1.0, "tokens": 1}
    limit |= {"flops": {"update": 1.0}, "seconds": {"update": 1.0}}
    work = replace(FEW, warmup=0)

    def text(lengths: list[int]) -> str:
        report = Report("x", 0.0, [Update(1.0, {"update": 1.0}, lengths, "", 1, 0.0)])
        side = {**side_summary([report], work, limit), "gate": None}
        part = {"title": "a title", "sides": {"ours": side}, "ratios": {}}
        machine = {"cpu": "chip", "gpus": [], "cores": 2, "os": "os"}
        origin = {"model": "tiny", "commit": "abc", "rounds": 1, "machine": machine}
        return markdown({**origin, "parts": {"lengths": part}})

    assert "Responses of 2 to 8 tokens, 4.7 on average." in text([2, 4, 8])
    assert "on average" not in text([8, 8])


def test_the_part_runs_when_it_is_named_and_compares_the_same_lengths() -> None:
    part = next(part for part in PARTS if part.name == "lengths")
    assert part.on_demand and part.peer is not None
    base = Workload("m", "p", episodes=16, response_length=32)
    works = [side.workload(base, part.of(("ours", "trl112"), {})) for side in part.sides]
    assert {(work.lengths, work.response_length) for work in works} == {(LOG_NORMAL, 64)}
    shorter = part.of(("ours", "trl112"), {"response_length": 8})
    assert [side.workload(base, shorter).response_length for side in shorter.sides] == [8] * 3
    assert len({str(target_lengths(work, many(16))) for work in works}) == 1
