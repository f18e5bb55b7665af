from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from instructrec.errors import NumericsError, PolicyError
from instructrec.policies.base import StopReason
from instructrec.policies.causal_lm import CausalLMPolicy, load_policy
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.policies.generation import CachedDecoder, Decoded
from instructrec.policies.prefill import common_prefix

PROMPTS = ["a", "count to ten please", "hi there", "a", "count to two", "a longer question?"]


def tiny(model: str = "tiny", dtype: Any = "float32", **settings: Any) -> CausalLMPolicy:
    return load_policy(PolicyConfig(model=model, dtype=dtype, device="cpu", **settings), seed=1)


@pytest.fixture(scope="module")
def policy() -> CausalLMPolicy:
    return tiny()


def decoder_of(policy: CausalLMPolicy, **settings: Any) -> CachedDecoder:
    options: dict[str, Any] = {
        "compute_dtype": torch.float32,
        "eos_token_ids": policy.eos_token_ids,
        "pad_token_id": policy.pad_token_id,
        "max_length": policy.max_length,
        "detokenize": lambda ids: policy.tokenizer.decode(ids, skip_special_tokens=True),
    }
    return CachedDecoder(policy.model, **(options | settings))


def decode(decoder: CachedDecoder, ids: list[list[int]], sampling: Sampling) -> list[Decoded]:
    return decoder.generate(ids, sampling, torch.Generator().manual_seed(5))


def often(policy: CausalLMPolicy, token: int, times: float) -> None:
    """Makes a token likelier in every context: adds to its logit through a constant direction."""
    head = policy.model.lm_head

    def hook(_module: Any, _args: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., token] += times
        return logits

    head.register_forward_hook(hook)


@torch.no_grad()
def plain_logprobs(policy: CausalLMPolicy, prompt: list[int], ids: list[int], t: float) -> Any:
    """Log-probs of a response by one forward over the whole sequence, alone and unpadded."""
    logits = policy.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return (logits / t).log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("shared_opening", ["", "all prompts begin alike: "])
def test_sampler_logprobs_equal_a_plain_forward_over_the_sequence(
    policy: CausalLMPolicy, temperature: float, shared_opening: str
) -> None:
    prompts = [shared_opening + prompt for prompt in PROMPTS]
    sampling = Sampling(max_new_tokens=9, temperature=temperature)
    responses = policy.respond(prompts, sampling=sampling)
    rows = zip(responses.prompt_ids, responses.response_ids, responses.logprobs, strict=True)
    for prompt, ids, logprobs in rows:
        expected = plain_logprobs(policy, prompt, ids, temperature)
        assert torch.allclose(torch.tensor(logprobs), expected, atol=1e-5)


@pytest.mark.parametrize("train", ["full", "lora"])
def test_greedy_decoding_equals_that_of_transformers(train: Any) -> None:
    policy = tiny(train=train)
    policy.tokenizer.padding_side = "left"
    ids = policy.encode(PROMPTS)
    batch = policy.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    expected = policy.model.generate(**batch, max_new_tokens=12, do_sample=False)
    expected = expected[:, batch["input_ids"].shape[1] :].tolist()
    ours = policy.respond(PROMPTS, sampling=Sampling(max_new_tokens=12, temperature=0))
    for own, theirs in zip(ours.response_ids, expected, strict=True):
        assert own == theirs[: len(own)]
    assert all(len(own) == 12 or own[-1] == 257 for own in ours.response_ids)


def test_the_same_generator_state_gives_the_same_samples(policy: CausalLMPolicy) -> None:
    state = policy.generator_state()
    first = policy.respond(PROMPTS)
    second = policy.respond(PROMPTS)
    policy.set_generator_state(state)
    again = policy.respond(PROMPTS)
    assert again == first
    assert second.response_ids != first.response_ids


def test_the_global_random_state_is_neither_used_nor_changed() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = tiny(train="lora").respond(PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert tiny(train="lora").respond(PROMPTS) == first


@pytest.mark.parametrize("settings", [{"memory_bytes": 1}, {"memory_bytes": 300_000}])
def test_cutting_the_work_into_batches_changes_no_response(
    policy: CausalLMPolicy, settings: dict[str, int]
) -> None:
    ids, sampling = policy.encode(PROMPTS * 3), Sampling(max_new_tokens=8)
    whole = decode(decoder_of(policy), ids, sampling)
    parts = decode(decoder_of(policy, **settings), ids, sampling)
    assert [item.ids for item in parts] == [item.ids for item in whole]
    for one, other in zip(parts, whole, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_grouping_prompts_in_the_prefill_changes_no_response(policy: CausalLMPolicy) -> None:
    ids, sampling = policy.encode([f"same start {p}" for p in PROMPTS]), Sampling(max_new_tokens=8)
    grouped = decoder_of(policy)
    grouped.rows_at_once = 2
    expected = decode(decoder_of(policy), ids, sampling)
    assert [item.ids for item in decode(grouped, ids, sampling)] == [item.ids for item in expected]


def test_dropping_finished_rows_changes_no_response(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny()
    often(policy, 257, 4.0)
    ids, sampling = policy.encode(PROMPTS * 5), Sampling(max_new_tokens=12)
    dropping = decode(decoder_of(policy), ids, sampling)
    monkeypatch.setattr("instructrec.policies.generation._DROP_SHARE", 2.0)
    keeping = decode(decoder_of(policy), ids, sampling)
    assert [item.ids for item in dropping] == [item.ids for item in keeping]
    assert len({len(item.ids) for item in dropping}) > 3  # rows did finish at different times


def test_samples_of_one_prompt_differ_and_share_its_prefill(policy: CausalLMPolicy) -> None:
    widths: list[int] = []
    hook = policy.model.model.embed_tokens.register_forward_hook(
        lambda _module, args, _out: widths.append(args[0].numel())
    )
    responses = policy.respond(["one prompt"] * 8, sampling=Sampling(max_new_tokens=3))
    hook.remove()
    assert widths[0] == len(responses.prompt_ids[0])  # one row in the prefill
    assert len(widths) == 3 and all(rows <= 8 for rows in widths[1:])
    assert len({tuple(ids) for ids in responses.response_ids}) > 1


def test_the_opening_that_all_prompts_share_runs_once(policy: CausalLMPolicy) -> None:
    widths: list[int] = []
    hook = policy.model.model.embed_tokens.register_forward_hook(
        lambda _module, args, _out: widths.append(args[0].numel())
    )
    policy.respond(["shared opening 1", "shared opening 2"], sampling=Sampling(max_new_tokens=1))
    hook.remove()
    assert widths == [15, 2 * 2]  # the opening, then one byte and the marker for each prompt


def test_common_prefix_leaves_every_prompt_a_token_of_its_own() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 3, 4]]) == 2
    assert common_prefix([[1, 2, 3], [1, 5, 3]]) == 1
    assert common_prefix([[7], [7, 8]]) == 0


@pytest.mark.parametrize("model", ["tiny", "tiny-pad-eos"])
def test_a_sampled_end_token_ends_the_response_and_belongs_to_it(model: str) -> None:
    policy = tiny(model)
    often(policy, 257, 5.0)
    responses = policy.respond(PROMPTS * 4, sampling=Sampling(max_new_tokens=30))
    ended = [
        ids
        for ids, r in zip(responses.response_ids, responses.stop_reasons, strict=True)
        if r == StopReason.EOS
    ]
    assert ended and all(ids[-1] == 257 and 257 not in ids[:-1] for ids in ended)
    assert not any("<|im_end|>" in text for text in responses.texts)


def test_several_end_tokens_all_end_a_response(policy: CausalLMPolicy) -> None:
    eos = list(range(128))
    items = decode(
        decoder_of(policy, eos_token_ids=eos), policy.encode(PROMPTS), Sampling(max_new_tokens=40)
    )
    assert all(item.ids[-1] < 128 and min(item.ids[:-1], default=128) >= 128 for item in items)
    assert all(item.stop_reason == StopReason.EOS for item in items)


def test_a_response_without_end_token_stops_at_the_budget(policy: CausalLMPolicy) -> None:
    items = decode(
        decoder_of(policy, eos_token_ids=[]), policy.encode(PROMPTS), Sampling(max_new_tokens=5)
    )
    assert [len(item.ids) for item in items] == [5] * len(PROMPTS)
    assert {item.stop_reason for item in items} == {StopReason.LENGTH}


def test_a_stop_string_ends_the_response_and_is_cut_from_the_text_alone() -> None:
    policy = tiny()
    for letter in "xy":
        often(policy, ord(letter), 6.0)
    sampling = Sampling(max_new_tokens=60, stop_strings=("xyx", "never"))
    responses = policy.respond(PROMPTS, sampling=sampling)
    stopped = [i for i, r in enumerate(responses.stop_reasons) if r == StopReason.STOP_STRING]
    assert stopped
    for i in stopped:
        written = policy.tokenizer.decode(responses.response_ids[i])
        assert written.endswith("xyx") and written.count("xyx") == 1
        assert responses.texts[i] == written.removesuffix("xyx").strip()


def test_a_prompt_that_leaves_no_room_for_the_response_is_refused(policy: CausalLMPolicy) -> None:
    with pytest.raises(PolicyError, match=r"prompt of 492 tokens .* up to 64 .* window of 512"):
        policy.respond(["short", "x" * 491], sampling=Sampling(max_new_tokens=64))


def test_no_prompts_give_no_responses(policy: CausalLMPolicy) -> None:
    assert policy.respond([]).texts == []


def test_a_policy_whose_weights_are_not_numbers_is_an_error() -> None:
    policy = tiny()
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NumericsError, match="not finite"):
        policy.respond(["a"])


def test_decoding_leaves_training_mode_as_it_was(policy: CausalLMPolicy) -> None:
    policy.model.train()
    policy.respond(["a"], sampling=Sampling(max_new_tokens=2))
    assert policy.model.training and policy.model.model.layers[0].training
    policy.model.eval()


def test_greedy_decoding_takes_no_random_numbers(policy: CausalLMPolicy) -> None:
    state = policy.generator_state()
    policy.respond(PROMPTS, sampling=dataclasses.replace(policy.sampling, temperature=0.0))
    assert torch.equal(policy.generator_state(), state)


def test_models_with_learned_positions_decode_with_padding_as_without() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2)).eval()
    decoder = CachedDecoder(
        model, compute_dtype=torch.float32, eos_token_ids=[0], pad_token_id=0, max_length=64,
        detokenize=str,
    )  # fmt: skip
    prompts = [[3, 4], [5, 6, 7, 8, 9], [5, 6, 7]]
    sampling = Sampling(max_new_tokens=6, temperature=0)
    together = decode(decoder, prompts, sampling)
    alone = [decode(decoder, [prompt], sampling)[0] for prompt in prompts]
    assert [item.ids for item in together] == [item.ids for item in alone]


def test_models_with_sliding_windows_decode_together_as_alone() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=4,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MistralForCausalLM(config).eval()
    decoder = CachedDecoder(
        model, compute_dtype=torch.float32, eos_token_ids=[0], pad_token_id=0, max_length=64,
        detokenize=str,
    )  # fmt: skip
    prompts = [[3, 4, 9, 9, 9, 9, 1], [3, 4, 9, 9, 9, 9, 1, 2, 2], [3, 4, 9, 9, 9, 9]]
    sampling = Sampling(max_new_tokens=8, temperature=0)
    together = decode(decoder, prompts, sampling)
    for prompt, item in zip(prompts, together, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=0)
        assert item.ids == theirs[0, len(prompt) :].tolist()[: len(item.ids)]


@pytest.mark.parametrize("train", ["full", "lora"])
def test_bfloat16_samples_have_the_trainers_logprobs_up_to_rounding(train: Any) -> None:
    policy = tiny(train=train, dtype="bfloat16")
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(20)  # logits of a trained model's size
    policy = load_like(policy)
    responses = policy.respond(PROMPTS * 4, sampling=Sampling(max_new_tokens=16))
    drift = []
    rows = zip(responses.prompt_ids, responses.response_ids, responses.logprobs, strict=True)
    for prompt, ids, logprobs in rows:
        with policy.autocast():
            expected = plain_logprobs(policy, prompt, ids, 1.0)
        drift.append((torch.tensor(logprobs) - expected.float()).abs())
    assert torch.cat(drift).mean() < 0.02


def load_like(policy: CausalLMPolicy) -> CausalLMPolicy:
    """The same model as a new policy, so that its decode copy holds the weights of now."""
    return CausalLMPolicy(
        policy.model,
        policy.tokenizer,
        config=policy.config,
        compute_dtype=policy.compute_dtype,
        sampling=policy.sampling,
    )
