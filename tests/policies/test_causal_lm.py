from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from instructrec.errors import ConfigError, PolicyError
from instructrec.policies.causal_lm import CausalLMPolicy, load_policy
from instructrec.policies.config import LoraSettings, PolicyConfig, Sampling


def tiny(seed: int = 1, **settings: Any) -> CausalLMPolicy:
    options: dict[str, Any] = {"model": "tiny", "dtype": "float32", "device": "cpu"}
    return load_policy(PolicyConfig(**(options | settings)), seed=seed)


def trained(policy: CausalLMPolicy) -> set[str]:
    return {name for name, p in policy.model.named_parameters() if p.requires_grad}


def disturb(policy: CausalLMPolicy, size: float = 0.5) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def test_weights_are_float32_whatever_the_compute_precision() -> None:
    for dtype in ("float32", "bfloat16"):
        policy = tiny(dtype=dtype)
        assert {p.dtype for p in policy.model.parameters()} == {torch.float32}


def test_full_training_trains_every_weight() -> None:
    policy = tiny(train="full")
    assert trained(policy) == {name for name, _ in policy.model.named_parameters()}


def test_last_layers_trains_these_and_the_final_norm_alone() -> None:
    policy = tiny(train="last_layers", num_layers=1)
    expected = {
        name
        for name, _ in policy.model.named_parameters()
        if name.startswith(("model.layers.1.", "model.norm."))
    }
    assert len(expected) == 10 and trained(policy) == expected


def test_more_layers_than_the_model_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_layers = 15: the model has 2 layers"):
        tiny(train="last_layers")


def test_lora_trains_adapters_alone() -> None:
    policy = tiny(train="lora", lora=LoraSettings(r=4, alpha=8, target_modules="q_proj, v_proj"))
    names = trained(policy)
    assert len(names) == 2 * 2 * 2 and all("lora_" in name for name in names)
    assert all("q_proj" in name or "v_proj" in name for name in names)


def test_lora_on_the_last_layers_trains_their_adapters_alone() -> None:
    plain = {n for n, p in tiny(train="lora").model.named_parameters() if p.requires_grad}
    policy = tiny(train="lora", num_layers=1)
    names = {n for n, p in policy.model.named_parameters() if p.requires_grad}
    assert names == {n for n in plain if ".layers.1." in n} and names < plain
    with pytest.raises(ConfigError, match="null for adapters on all of them"):
        tiny(train="lora", num_layers=3)


def test_a_saved_adapter_stays_on_its_layers(tmp_path: Path) -> None:
    tiny(train="lora", num_layers=1).save(tmp_path)
    for num_layers in (None, 1):
        again = load_policy(
            PolicyConfig(model=str(tmp_path), device="cpu", train="lora", num_layers=num_layers)
        )
        trained = [n for n, p in again.model.named_parameters() if p.requires_grad]
        assert trained and all(".layers.1." in name for name in trained)
    with pytest.raises(ConfigError, match=r"is on layers \[1\] and would be trained on"):
        load_policy(PolicyConfig(model=str(tmp_path), device="cpu", train="lora", num_layers=2))


def test_adapter_targets_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(PolicyError, match="target_modules = 'attention_of_mine'"):
        tiny(train="lora", lora=LoraSettings(target_modules="attention_of_mine"))


def test_new_adapters_change_no_answer() -> None:
    sampling = Sampling(max_new_tokens=8)
    assert tiny(train="lora").respond(["hi"], sampling=sampling) == tiny().respond(
        ["hi"], sampling=sampling
    )


def test_dropout_is_off_in_configuration_and_modules(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        sizes: Any = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=256, eos_token_id=257))
    model.save_pretrained(tmp_path)
    tiny().tokenizer.save_pretrained(tmp_path)
    policy = load_policy(PolicyConfig(model=str(tmp_path), dtype="float32", device="cpu"))
    assert policy.model.config.attn_pdrop == policy.model.config.resid_pdrop == 0.0
    policy.model.train()
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(policy.model(ids).logits, policy.model(ids).logits)
    assert policy.max_length == 64


@pytest.mark.parametrize("train", ["full", "last_layers", "lora"])
def test_sync_makes_the_decode_copy_answer_with_the_trained_weights(train: Any) -> None:
    policy = tiny(train=train, num_layers=1, dtype="bfloat16")
    ids = torch.tensor([policy.encode(["what now?"])[0]])
    decoding: Any = policy.decoder
    disturb(policy, 0.05)
    with torch.no_grad(), policy.autocast():
        target = policy.model(ids).logits
        stale = (decoding.model(ids).logits - target).abs().max()
        policy.sync()
        fresh = (decoding.model(ids).logits - target).abs().max()
    assert stale > 5 * fresh
    assert fresh < 0.03 * (1 + target.abs().max())


def test_the_decode_copy_keeps_matrices_in_bfloat16_and_everything_else_in_float32() -> None:
    decoding: Any = tiny(dtype="bfloat16").decoder
    for name, tensor in [*decoding.model.named_parameters(), *decoding.model.named_buffers()]:
        expected = torch.bfloat16 if "_proj" in name else torch.float32
        assert tensor.dtype == expected, name


def test_the_decode_copy_repeats_the_arithmetic_of_the_trainer_but_for_the_output_layer() -> None:
    policy = tiny(dtype="bfloat16")
    disturb(policy, 0.05)
    policy.sync()
    decoding: Any = policy.decoder
    ids = torch.tensor([policy.encode(["what now?"])[0]])
    with torch.no_grad(), policy.autocast():
        own = policy.model.model(ids).last_hidden_state
        copied = decoding.model.model(ids).last_hidden_state
        assert torch.equal(copied, own)
        logits = decoding.model(ids).logits
    assert torch.equal(logits, torch.nn.functional.linear(own, policy.model.lm_head.weight))


@pytest.mark.parametrize("train", ["full", "last_layers"])
def test_sync_copies_each_weight_as_it_is(train: Any) -> None:
    policy = tiny(train=train, num_layers=1, dtype="bfloat16")
    disturb(policy)
    policy.sync()
    decoding: Any = policy.decoder
    own = dict(policy.model.named_parameters())
    for name, copied in decoding.model.named_parameters():
        assert torch.equal(copied, own[name].to(copied.dtype)), name


def test_in_float32_the_model_itself_decodes() -> None:
    policy = tiny()
    decoding: Any = policy.decoder
    assert decoding.model is policy.model


def test_autocast_computes_in_the_chosen_precision() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        policy = tiny(dtype=str(dtype).removeprefix("torch."))
        with policy.autocast():
            assert policy.model(torch.tensor([[1, 2]])).logits.dtype == dtype


@pytest.mark.parametrize("train", ["full", "lora"])
def test_saved_files_are_as_readable_as_any_new_file(tmp_path: Path, train: Any) -> None:
    before = os.umask(0o027)
    try:
        tiny(train=train).save(tmp_path)
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()} == {"0o640"}


@pytest.mark.parametrize("train", ["full", "last_layers", "lora"])
def test_a_saved_policy_loads_with_equal_weights_and_answers(train: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train": train, "num_layers": 1}
    policy = tiny(seed=3, **settings)
    disturb(policy, 0.1)
    policy.save(tmp_path / "policy")
    again = tiny(seed=3, model=str(tmp_path / "policy"), **settings)
    assert again.weights_hash() == policy.weights_hash()
    assert again.respond(["hi", "hello"]) == policy.respond(["hi", "hello"])
    assert again.continues_adapter == (train == "lora")


def test_a_saved_adapter_is_merged_when_no_adapter_is_trained(tmp_path: Path) -> None:
    policy = tiny(seed=3, train="lora")
    disturb(policy, 0.1)
    policy.save(tmp_path)
    merged = tiny(seed=99, model=str(tmp_path))
    assert not hasattr(merged.model, "peft_config")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.allclose(merged.model(ids).logits, policy.model(ids).logits, atol=1e-5)
    with pytest.raises(ConfigError, match=r"r = 8.* has r = 16"):
        tiny(model=str(tmp_path), train="lora", lora=LoraSettings(r=8))


def test_the_weights_hash_sees_one_changed_number() -> None:
    policy = tiny()
    before = policy.weights_hash()
    assert before == tiny().weights_hash() != tiny(seed=2).weights_hash()
    with torch.no_grad():
        policy.model.model.norm.weight[0] += 1e-3
    assert policy.weights_hash() != before


def test_a_run_folder_is_a_policy(tmp_path: Path) -> None:
    policy = tiny()
    policy.save(tmp_path / "policy")
    (tmp_path / "run.json").write_text("{}")
    assert tiny(model=str(tmp_path)).weights_hash() == policy.weights_hash()


def test_the_pad_token_of_the_second_tiny_model_is_its_end_token() -> None:
    policy = tiny(model="tiny-pad-eos")
    assert [policy.pad_token_id] == policy.eos_token_ids == [257]
    assert tiny().pad_token_id != tiny().eos_token_ids[0]


def test_every_byte_survives_the_tiny_tokenizer() -> None:
    tokenizer = tiny().tokenizer
    text = "".join(chr(i) for i in range(1, 0x250)) + "🙂"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_answers_to_token_ids_are_the_answers_to_their_prompts() -> None:
    prompts, sampling = ["one", "three", "one"], Sampling(max_new_tokens=6)
    by_text, by_ids = tiny(), tiny()
    expected = by_text.respond(prompts, sampling=sampling)
    assert by_ids.respond_ids(by_ids.encode(prompts), sampling) == expected
