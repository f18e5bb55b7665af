"""The gate of our own passes: what is timed agrees with plain passes, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gate
from benchmarks.prepare import prepare
from benchmarks.side_ours import WatchedDecoder, run
from benchmarks.workload import GateError, Prompts, Workload
from instructrec.policies.trunk import Trunk


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """The tiny model in float32 and prompts that begin alike."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare("tiny", folder, num_prompts=8, response_length=6)
    prompts = Prompts.read(folder / "prompts.json")
    alike = [f"Please answer the following question: {text}" for text in prompts.texts]
    replace(prompts, texts=alike).write(folder / "prompts.json")
    return Workload(
        str(folder / "model"),
        str(folder / "prompts.json"),
        episodes=8,
        response_length=6,
        dtype="float32",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"critic": "separate"},
        {"train": "last_layers"},
        {"train": "lora", "generations": 4, "kl_coef": 0.0},
        {"dtype": "bfloat16", "train": "last_layers"},
    ],
)
def test_what_is_timed_agrees_with_plain_passes(tiny: Workload, changes: dict[str, Any]) -> None:
    work = replace(tiny, **changes)
    errors = gate.measure(work)
    gate.check(work, errors)
    if work.dtype == "float32":
        assert max(asdict(errors).values()) < 1e-5
    else:
        assert min(asdict(errors).values()) > 0  # rounding is seen


def shifted(amount: float) -> Callable[..., Any]:
    """A decoder's ``generate`` that reports other log-probs than it drew by."""
    generate = WatchedDecoder.generate

    def wrong(self: Any, *args: Any) -> Any:
        found = generate(self, *args)
        return [d._replace(logprobs=[value - amount for value in d.logprobs]) for d in found]

    return wrong


def test_a_sampler_that_is_wrong_is_refused(
    tiny: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WatchedDecoder, "generate", shifted(0.2))
    errors = gate.measure(tiny)
    assert errors.sampler == pytest.approx(0.2, abs=1e-4) and errors.logprobs < 1e-5
    with pytest.raises(GateError, match=r"sampler 0\.2 \(at most 0\.001\)"):
        gate.check(tiny, errors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_update_whose_sampler_drifts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    prepare("tiny", tmp_path, num_prompts=8, response_length=6)
    files = str(tmp_path / "model"), str(tmp_path / "prompts.json")
    work = Workload(*files, episodes=8, response_length=6, dtype=dtype)
    monkeypatch.setattr(WatchedDecoder, "generate", shifted(0.05))
    with pytest.raises(GateError, match=r"sampler and trainer differ by 0\.0"):
        run(work)


def test_the_gate_sees_a_wrong_pass_over_shared_prompts(
    tiny: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Trunk.full
    seen = []

    def shifted_states(self: Trunk, ids_BL: Tensor, shared: int = 0) -> Any:
        seen.append(shared)
        hidden, cut = full(self, ids_BL, shared)
        return hidden * (1.0 if not shared else 1.2), cut

    monkeypatch.setattr(Trunk, "full", shifted_states)
    monkeypatch.setattr(Trunk, "_check", lambda self, causal: None)  # it would notice, too
    errors = gate.measure(tiny)
    assert max(seen) > 30 and errors.reference > 1e-3
    with pytest.raises(GateError, match="reference"):
        gate.check(tiny, errors)


def test_a_pass_whose_gradient_is_wrong_is_refused(
    tiny: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Trunk.full

    def weaker(self: Trunk, ids_BL: Tensor, shared: int = 0) -> Any:
        hidden, cut = full(self, ids_BL, shared)
        return hidden.detach() * 0.5 + hidden * 0.5, cut  # the same values, half the gradient

    monkeypatch.setattr(Trunk, "full", weaker)
    errors = gate.measure(tiny)
    assert errors.logprobs < 1e-5 and errors.gradient == pytest.approx(0.5, abs=0.1)
    with pytest.raises(GateError, match="gradient"):
        gate.check(tiny, errors)


def test_a_gradient_of_one_side_alone_is_refused() -> None:
    one = {"policy.a": torch.ones(2), "critic.b": torch.ones(2)}
    assert gate.gradient_error(one, one) == 0
    assert gate.gradient_error({**one, "critic.b": torch.zeros(2)}, one) == 1
    with pytest.raises(GateError, match=r"policy\.a"):
        gate.gradient_error({"critic.b": torch.ones(2)}, one)


def test_the_gate_learns_from_few_episodes_in_whole_groups(tiny: Workload) -> None:
    def sizes(**changes: int) -> Sequence[int]:
        small = gate.small(replace(tiny, **changes))
        assert small.episodes % small.generations == 0 and small.steps == 1
        return small.episodes, small.micro_batch_size

    assert sizes(episodes=64, mini_batches=4) == (8, 4)
    assert sizes(episodes=64, generations=4) == (8, 4)
    assert sizes(episodes=3) == (3, 3)


def test_the_program_writes_what_it_found(tiny: Workload, tmp_path: Path) -> None:
    request, answer = tmp_path / "workload.json", tmp_path / "answer.json"
    request.write_text(json.dumps(asdict(tiny)))
    gate.main([str(request), str(answer)])
    assert set(json.loads(answer.read_text())) == {
        *("sampler", "logprobs", "reference", "values", "gradient")
    }
