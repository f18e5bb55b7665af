"""Folders of models that cannot answer instructions, made from configurations alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from instructrec.errors import PolicyError
from instructrec.policies.architecture import check_architecture
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.policies.tiny import make_tiny_tokenizer

SIZES: dict[str, Any] = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 32}
SIZES |= {"num_hidden_layers": 1, "num_attention_heads": 2}
T5 = {"vocab_size": 259, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}


def load(folder: Path) -> Any:
    return load_policy(PolicyConfig(model=str(folder), dtype="float32", device="cpu"))


def saved(folder: Path, kind: str, **settings: Any) -> Path:
    """Writes a random model of a class of transformers, and a tokenizer."""
    model_class: Any = getattr(transformers, kind)
    with torch.random.fork_rng(devices=[]):
        model_class(model_class.config_class(**settings)).save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("T5ForConditionalGeneration", T5, "t5 is an encoder-decoder model: it reads"),
        ("BertForMaskedLM", SIZES, "bert is an encoder: each token sees those behind it"),
        ("RobertaForMaskedLM", SIZES, "roberta is an encoder"),
        (
            "LlamaForSequenceClassification",
            SIZES | {"num_labels": 1},
            r"LlamaForSequenceClassification scores texts and writes none.*`learned`.*critic_model",
        ),
        ("BertForSequenceClassification", SIZES, "BertForSequenceClassification scores texts"),
        (
            "LlamaModel",
            SIZES,
            r"would be random, for example 'lm_head.weight'.*saved as LlamaModel",
        ),
        ("MambaForCausalLM", {"vocab_size": 259, "hidden_size": 32}, "mamba has no attention"),
    ],
)
def test_a_model_that_writes_no_answers_is_refused_with_the_reason(
    tmp_path: Path, kind: str, settings: dict[str, Any], reason: str
) -> None:
    folder = saved(tmp_path, kind, **settings)
    with pytest.raises(PolicyError, match=rf"(?s)model '{tmp_path}' cannot be used: .*{reason}"):
        load(folder)


@pytest.mark.parametrize(
    "config",
    ["LlavaConfig", "Qwen2_5_VLConfig", "Gemma3Config", "Idefics3Config", "FuyuConfig"],
)
def test_a_model_that_sees_is_refused_with_the_reason(tmp_path: Path, config: str) -> None:
    settings: Any = getattr(transformers, config)()
    settings.save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        PolicyError, match=r"also takes images or sound, and instructions here are text.*name that"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    "config", ["LlamaConfig", "Qwen2Config", "Qwen3Config", "GPT2Config", "GPTNeoXConfig"]
)
def test_decoders_pass(config: str) -> None:
    check_architecture(getattr(transformers, config)(), "mine")


def test_an_encoder_that_was_made_a_decoder_passes() -> None:
    check_architecture(transformers.BertConfig(is_decoder=True), "mine")


def llama_with(tmp_path: Path, change: Callable[[Any], None]) -> Path:
    saved(tmp_path, "LlamaForCausalLM", **SIZES)
    tokenizer = make_tiny_tokenizer()
    change(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_model_without_chat_template_answers_behind_plain_lines(tmp_path: Path) -> None:
    def drop(tokenizer: Any) -> None:
        tokenizer.chat_template = None

    folder = llama_with(tmp_path, drop)
    (folder / "chat_template.jinja").unlink()
    policy = load(folder)
    assert policy.tokenizer.decode(policy.encode(["hi"])[0]) == "User: hi\nAssistant:"
    assert len(policy.respond(["hi"], sampling=Sampling(max_new_tokens=3)).texts) == 1


def test_a_tokenizer_without_end_token_is_refused(tmp_path: Path) -> None:
    def drop(tokenizer: Any) -> None:
        tokenizer.eos_token = None

    with pytest.raises(PolicyError, match=r"has no eos token, so that no response could end. Set"):
        load(llama_with(tmp_path, drop))


def test_a_folder_without_tokenizer_says_what_it_needs(tmp_path: Path) -> None:
    folder = saved(tmp_path, "LlamaForCausalLM", **SIZES)
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(PolicyError, match=r"Expected config.json, safetensors weights and a tok"):
        load(folder)
