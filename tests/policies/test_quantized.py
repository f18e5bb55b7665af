from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from instructrec.errors import ConfigError, PolicyError
from instructrec.policies.causal_lm import CausalLMPolicy, load_policy
from instructrec.policies.config import LoraSettings, PolicyConfig, Sampling
from instructrec.policies.quantized import check_quantization
from instructrec.policies.tiny import make_tiny_model, make_tiny_tokenizer
from instructrec.policies.trunk import Trunk

real = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
PROMPTS = ["hi there", "a question that is longer"]


def quantized(model: str | Path = "tiny", **settings: Any) -> CausalLMPolicy:
    options = {"train": "lora", "quantization": "nf4", "dtype": "float32", "device": "cpu"}
    return load_policy(PolicyConfig(model=str(model), **(options | settings)), seed=1)


def disturb(policy: CausalLMPolicy, size: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    policy.sync()


def logits(policy: CausalLMPolicy) -> torch.Tensor:
    with torch.no_grad(), policy.autocast():
        return policy.model(torch.arange(24).reshape(2, 12)).logits.float()


def drift(policy: CausalLMPolicy) -> float:
    """Largest difference between sampled log-probs and those of a pass over the whole text."""
    answers = policy.respond(PROMPTS, sampling=Sampling(max_new_tokens=8))
    trunk, worst = Trunk(policy.model), 0.0
    for prompt, response, sampled in zip(
        answers.prompt_ids or [], answers.response_ids or [], answers.logprobs or [], strict=True
    ):
        with torch.no_grad(), policy.autocast():
            hidden, _ = trunk.full(torch.tensor([prompt + response]))
            again, _ = trunk.token_logprobs(
                hidden[0, len(prompt) - 1 : -1], torch.tensor(response), 1.0
            )
        worst = max(worst, float((again - torch.tensor(sampled)).abs().max()))
    return worst


@pytest.mark.parametrize("train", ["full", "last_layers"])
def test_weights_in_4_bits_do_not_train(train: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot be trained. Set policy.train: lora"):
        PolicyConfig(train=train, quantization="nf4")


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes.*instructrec\[quantized\]"):
        quantized()


def test_a_device_that_bitsandbytes_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_layer(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("no kernel for this device")

    fake = SimpleNamespace(nn=SimpleNamespace(Linear4bit=no_layer), __version__="0.1")
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)
    with pytest.raises(ConfigError, match=r"does not work on cpu with bitsandbytes 0.1: NotImpl"):
        check_quantization(torch.device("cpu"))


def test_an_adapter_of_an_unknown_rounding_is_refused(tmp_path: Path) -> None:
    load_policy(PolicyConfig(model="tiny", train="lora", device="cpu")).save(tmp_path)
    (tmp_path / "quantization.json").write_text(json.dumps({"base": "nf5"}))
    with pytest.raises(PolicyError, match=r"rounded to 'nf5': expected 'nf4'"):
        load_policy(PolicyConfig(model=str(tmp_path), train="lora", device="cpu"))


@real
def test_only_the_matrices_between_embeddings_and_output_are_in_4_bits() -> None:
    policy = quantized()
    for name, parameter in policy.model.named_parameters():
        packed = "base_layer.weight" in name
        assert parameter.dtype == (torch.uint8 if packed else torch.float32), name
        assert parameter.requires_grad == ("lora_" in name), name
    whole, base = make_tiny_model(1), policy.model.get_base_model()
    assert torch.equal(base.lm_head.weight, whole.lm_head.weight)
    packed_bytes = sum(p.nbytes for p in base.model.layers.parameters() if p.dtype == torch.uint8)
    matrices = sum(p.numel() for p in whole.model.layers.parameters() if p.dim() == 2)
    assert packed_bytes == matrices / 2


@real
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_sampler_and_trainer_agree(dtype: Any, bound: float) -> None:
    policy = quantized(dtype=dtype)
    disturb(policy)
    assert drift(policy) <= bound
    assert policy.decoder.model is policy.model  # type: ignore[attr-defined]


@real
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answering_leaves_every_weight_as_it_was(dtype: Any) -> None:
    policy = quantized(dtype=dtype)
    before, start = policy.weights_hash(), logits(policy)
    policy.respond(PROMPTS, sampling=Sampling(max_new_tokens=8))
    assert policy.weights_hash() == before
    assert torch.equal(logits(policy), start)


@real
def test_a_bias_has_the_precision_of_the_products_from_the_start(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes: Any = {"vocab_size": 259, "hidden_size": 64, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    with torch.random.fork_rng(devices=[]):
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
        torch.nn.init.normal_(model.model.layers[0].self_attn.q_proj.bias)
    model.save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    policy = quantized(tmp_path, dtype="bfloat16")
    before = policy.weights_hash()
    logits(policy)
    assert policy.weights_hash() == before


@real
def test_gradients_are_those_of_adapters_on_the_rounded_base_in_float32(tmp_path: Path) -> None:
    policy = quantized()
    disturb(policy)
    policy.save(tmp_path)
    gradients = []
    for each in (policy, quantized(tmp_path, quantization=None)):
        each.model(torch.arange(24).reshape(2, 12)).logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in each.model.named_parameters()})
    for name, gradient in gradients[0].items():
        expected = gradients[1][name]
        if "lora_" not in name:
            assert gradient is None and expected is None, name
            continue
        assert gradient is not None and expected is not None and bool(expected.any()), name
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@real
def test_a_saved_adapter_comes_back_on_the_rounded_base_however_it_is_loaded(
    tmp_path: Path,
) -> None:
    policy = quantized()
    disturb(policy)
    policy.save(tmp_path / "first")
    again = quantized(tmp_path / "first")
    assert again.weights_hash() == policy.weights_hash()
    exact = logits(policy)
    for train in ("lora", "full"):
        loaded = quantized(tmp_path / "first", train=train, quantization=None)
        assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
        assert (logits(loaded) - exact).abs().max() < 1e-5
        loaded.save(tmp_path / train)
    assert (tmp_path / "lora" / "quantization.json").is_file()
    assert not (tmp_path / "full" / "quantization.json").exists()
    merged = quantized(tmp_path / "full", train="full", quantization=None)
    assert (logits(merged) - exact).abs().max() < 1e-5
    plain = load_policy(
        PolicyConfig(model="tiny", train="lora", dtype="float32", device="cpu"), seed=1
    )
    assert (logits(plain) - exact).abs().max() > 1e-3  # the rounding is not nothing


@real
def test_an_adapter_on_an_adapter_is_refused(tmp_path: Path) -> None:
    quantized(lora=LoraSettings(r=4, alpha=8)).save(tmp_path / "below")
    quantized().save(tmp_path / "above")
    file = tmp_path / "above" / "adapter_config.json"
    settings = json.loads(file.read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "below")
    file.write_text(json.dumps(settings))
    with pytest.raises(PolicyError, match=r"itself an adapter: expected a whole model"):
        quantized(tmp_path / "above")


@real
@pytest.mark.slow
def test_importing_what_trains_says_nothing() -> None:
    code = "import instructrec.rl.ppo, bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
