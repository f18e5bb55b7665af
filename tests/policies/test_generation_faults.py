"""Decoding when the memory is full, and when the model's output is no number."""

from __future__ import annotations

import pytest
import torch

from instructrec.errors import NonFiniteLogitsError, PolicyError
from instructrec.faults import heard_by
from instructrec.policies import generation
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig, Sampling

SAMPLING = Sampling(max_new_tokens=6)
PROMPTS = [f"write {'x' * (i % 5)}{i}" for i in range(12)]


@pytest.fixture
def policy():
    return load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"), seed=3)


def limited(policy, most, error=None):
    """Lets a forward pass of the decoder hold so many rows."""
    forward = type(policy.decoder._forward)
    error = error or torch.OutOfMemoryError("CUDA out of memory")

    calls = []

    class Limited(forward):
        def __call__(self, ids_BT, mask, cache):
            calls.append(len(ids_BT))
            if len(ids_BT) > most and ids_BT.shape[1] == 1:  # while it decodes, not in the prefill
                raise error
            return super().__call__(ids_BT, mask, cache)

    policy.decoder._forward.__class__ = Limited
    return calls


@pytest.mark.parametrize("keeps", [False, True])
def test_prompts_beyond_the_memory_are_answered_in_halves_alike(policy, keeps):
    generator, answers, states = policy.generator_state(), [], []
    for most in (99, 4):
        policy.set_generator_state(generator)
        limited(policy, most)
        faults = []
        with heard_by(faults.append), policy.keeping_states(0 if keeps else None):
            answers.append(policy.respond(PROMPTS, sampling=SAMPLING))
        states.append(policy.generator_state())
    assert answers[0].response_ids == answers[1].response_ids
    for one, other in zip(answers[0].logprobs, answers[1].logprobs, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert torch.equal(*states)
    assert [(f.boundary, f.kind, f.name) for f in faults] == [
        ("memory", "out_of_memory", "generation")
    ] * len(faults)
    assert faults
    if keeps:
        for one, other in zip(answers[0].states, answers[1].states, strict=True):
            assert torch.allclose(one.final_TH, other.final_TH, atol=1e-5)


def test_later_batches_are_smaller_from_the_start(policy):
    policy.decoder._memory_bytes = 2**31
    limited(policy, 6)
    share = policy.decoder.memory_share
    with heard_by(lambda _: None):
        policy.respond(PROMPTS, sampling=SAMPLING)
    assert policy.decoder.memory_share == share / 2


def test_memory_that_the_allocator_holds_without_need_is_free(monkeypatch):
    for name, value in (("mem_get_info", (10, 100)), ("memory_reserved", 80)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert generation._free_memory(torch.device("cuda")) == 21


def test_one_prompt_beyond_the_memory_is_an_error(policy):
    limited(policy, 0)
    with (
        heard_by(lambda _: None),
        pytest.raises(PolicyError, match="memory while answering one"),
    ):
        policy.respond(PROMPTS, sampling=SAMPLING)


def test_another_error_is_not_repeated(policy):
    calls = limited(policy, 0, RuntimeError("CUDA error: illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        policy.respond(PROMPTS[:1], sampling=SAMPLING)
    assert len(calls) == 2  # the prefill, and one step


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [SAMPLING, Sampling(max_new_tokens=6, temperature=0.0)])
def test_output_that_is_no_number_names_prompt_and_token(policy, value, sampling):
    bad = policy.encode(["write zzz"])[0]
    embeddings = policy.model.get_input_embeddings().weight
    (only,) = set(bad) - {i for ids in policy.encode(PROMPTS) for i in ids}
    with torch.no_grad():
        embeddings[only] = value  # only the prompt with this byte is hit
    with pytest.raises(NonFiniteLogitsError, match="token 1 of a response") as error:
        policy.respond([*PROMPTS[:3], "write zzz", *PROMPTS[3:]], sampling=sampling)
    assert error.value.row == 3 and error.value.exit_code == 7
