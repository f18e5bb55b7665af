"""The gate of the benchmark: work that is not the work to be compared is refused, not timed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.prepare import prepare
from benchmarks.side_ours import logprob_error, make_policy, run
from benchmarks.stopwatch import Stopwatch, peak_rss_bytes
from benchmarks.workload import (
    GateError,
    Prompts,
    Report,
    Update,
    Workload,
    check_logprobs,
    check_update,
    expected_answers,
    prompts_hash,
    update_faults,
)

WORK = Workload("", "", episodes=2, response_length=3, epochs=2, mini_batches=1, dtype="float32")
PROMPTS = Prompts(["a", "b", "c"], [[1, 2], [3], [4]], ["a", "b", "c"], [[5, 6, 7]], [[-1.0] * 3])
DONE = Update(1.0, {}, [3, 3], prompts_hash([[3], [1, 2]]), 2, 0.5)


def test_the_work_that_was_asked_for_passes() -> None:
    assert update_faults(WORK, DONE, expected_answers(WORK, PROMPTS)) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"response_lengths": [3, 2]}, "1 responses do not end .* 2 tokens instead of 3"),
        ({"response_lengths": [3]}, "1 episodes instead of 2"),
        ({"prompts_hash": prompts_hash([[1, 2], [4]])}, "not the given ones"),
        ({"optimizer_steps": 1}, "1 optimizer steps instead of 2"),
        ({"loss": float("nan")}, "the loss is nan"),
        ({"loss": float("inf")}, "the loss is inf"),
    ],
)
def test_other_work_is_refused_with_its_fault(changes: dict, fault: str) -> None:
    with pytest.raises(GateError, match=fault):
        check_update(WORK, replace(DONE, **changes), expected_answers(WORK, PROMPTS))


def test_prompts_are_compared_token_for_token_whatever_their_order() -> None:
    assert prompts_hash([[1, 2], [3]]) == prompts_hash([[3], [1, 2]])
    assert prompts_hash([[1, 2], [3]]) != prompts_hash([[1], [2, 3]])
    twice = replace(WORK, episodes=4, generations=2)
    expected = expected_answers(twice, PROMPTS)
    assert expected.prompts_hash == prompts_hash([[3], [1, 2], [3], [1, 2]])


@pytest.mark.parametrize("error", [0.002, float("nan")])
def test_other_logprobs_are_refused(error: float) -> None:
    check_logprobs(WORK, 0.0009)
    check_logprobs(replace(WORK, dtype="bfloat16"), 0.02)
    with pytest.raises(GateError, match=r"expected at most 0\.001"):
        check_logprobs(WORK, error)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """The tiny model and eight prompts, ready for every side."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare("tiny", folder, num_prompts=8, response_length=4)
    return Workload(
        str(folder / "model"),
        str(folder / "prompts.json"),
        episodes=8,
        response_length=4,
        epochs=2,
        mini_batches=2,
        dtype="float32",
    )


def test_weights_that_differ_are_refused_before_anything_trains(tiny: Workload) -> None:
    prompts, policy = Prompts.read(tiny.prompts), make_policy(tiny)
    assert logprob_error(policy, prompts) < 1e-5
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(1.1)
    with pytest.raises(GateError, match="other weights"):
        check_logprobs(tiny, logprob_error(policy, prompts))


def test_ours_does_the_work_of_a_workload(tiny: Workload) -> None:
    report = run(tiny)
    assert len(report.updates) == 2  # one to warm up, one that counts
    for update in report.updates:
        assert update.response_lengths == [4] * 8 and update.optimizer_steps == 4
        assert min(update.phases.values()) >= 0
        assert sum(update.phases.values()) == pytest.approx(update.seconds)
        assert {"prefill", "decode", "reference", "values", "update"} <= set(update.phases)
    assert report.peak_rss_bytes > 1e8 and report.versions["torch"]
    assert 0 < report.extra["speed/limit_frac"] < 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone forgets it")
def test_the_memory_of_the_gate_is_not_that_of_the_training(tiny: Workload) -> None:
    watch = Stopwatch(tiny, Report("none", 0.0))
    before = peak_rss_bytes()
    large = torch.ones(2**27)
    del large
    assert peak_rss_bytes() > before + 4e8
    watch.pass_gate(1e-6)
    assert peak_rss_bytes() < before + 1e8 and watch.report.logprob_error == 1e-6
    with pytest.raises(GateError):
        watch.pass_gate(1.0)


def test_phases_never_overlap(tiny: Workload) -> None:
    watch = Stopwatch(tiny, Report("none", 0.0))
    now = iter([0.0, 1.0, 4.0, 6.0])
    watch._now = lambda: next(now)  # type: ignore[method-assign]
    watch._mark = 0.0
    with watch.phase("outer"), watch.phase("inner"):
        pass
    assert watch.phases == {"outer": 1.0 + 2.0, "inner": 3.0}


@pytest.mark.slow
@pytest.mark.parametrize("train", ["full", "last_layers", "lora"])
def test_grpo_does_the_work_of_a_workload(tiny: Workload, train: str) -> None:
    from benchmarks import side_trl116

    work = replace(tiny, generations=4, kl_coef=0.0, train=train)
    report = side_trl116.run(work)
    assert [update.response_lengths for update in report.updates] == [[4] * 8] * 2
    assert {"prefill", "decode", "update", "optimizer"} <= set(report.updates[1].phases)
    assert report.logprob_error < 1e-5


def test_decoding_alone_is_the_same_work_on_both_sides(tiny: Workload) -> None:
    from benchmarks import side_generate

    work = replace(tiny, epochs=0, mini_batches=1, kl_coef=0.0)
    for report in (run(work), side_generate.run(work)):
        assert [update.response_lengths for update in report.updates] == [[4] * 8] * 2
        assert {"prefill", "decode"} <= set(report.updates[1].phases)
        assert "update" not in report.updates[1].phases and report.logprob_error < 1e-5
    with pytest.raises(GateError, match="only decodes"):
        side_generate.run(tiny)
