"""Exported folders: plain transformers gives the answers that the policy gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from instructrec.policies.causal_lm import CausalLMPolicy, load_policy
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.policies.exporting import write_int8, write_merged
from instructrec.policies.labels import LabelPolicy

PROMPTS = ["Say hello.", "What is 2 + 2?", "Grüße!"]
TOKENS = 24


def policy_of(model: str = "tiny", **settings: Any) -> CausalLMPolicy:
    config = PolicyConfig(model=model, dtype="float32", device="cpu", **settings)
    policy = load_policy(config, seed=1, sampling=Sampling(TOKENS, 0.0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:  # adapters begin as nothing
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


def answers(folder: Path, **options: Any) -> list[list[int]]:
    """Greedy token ids from transformers alone, prompts as the folder's template makes them."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    found = []
    for prompt in PROMPTS:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        made = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        found.append(made[0, inputs["input_ids"].shape[1] :].tolist())
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train": "lora"},
        {"model": "tiny-pad-eos", "system_prompt": 'Be "brief" \\ {{ 1 }} é\n\U0001f600 {% x %}'},
    ],
)
def test_plain_transformers_gives_the_same_answers(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    policy = policy_of(**settings)
    expected = policy.respond(PROMPTS).response_ids
    assert len({tuple(ids) for ids in expected}) > 1
    write_merged(policy, tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert answers(tmp_path / "out") == expected


def test_weights_are_written_in_the_precision_asked_for(tmp_path: Path) -> None:
    write_merged(policy_of(), tmp_path / "out", "bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    modes = {file.stat().st_mode for file in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # whoever may read the settings may read the weights


def test_an_export_can_be_a_policy_again(tmp_path: Path) -> None:
    policy = policy_of(system_prompt="Be brief.")
    expected = policy.respond(PROMPTS).response_ids
    write_merged(policy, tmp_path / "out")
    again = load_policy(
        PolicyConfig(str(tmp_path / "out"), dtype="float32", system_prompt="Be brief."),
        sampling=Sampling(TOKENS, 0.0),
    )
    assert again.respond(PROMPTS).response_ids == expected


def test_int8_answers_nearly_alike_and_is_smaller(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    policy = policy_of()
    write_merged(policy, tmp_path / "whole")
    write_int8(tmp_path / "whole", tmp_path / "int8")
    sizes = [sum(f.stat().st_size for f in (tmp_path / n).glob("*.safetensors"))
             for n in ("whole", "int8")]  # fmt: skip
    assert sizes[1] < 0.6 * sizes[0]
    whole, small = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
        for name in ("whole", "int8")
    )
    ids = torch.tensor([policy.encode(PROMPTS[:1])[0]])
    with torch.no_grad():
        difference = (whole(ids).logits - small(ids).logits).abs().max()
    assert 0 < difference < 0.1


@pytest.mark.parametrize("train", ["full", "lora"])
def test_a_policy_of_labels_takes_its_head_along(tmp_path: Path, train: str) -> None:
    policy = LabelPolicy(policy_of(train=train), ("a", "b", "c"))
    torch.nn.init.normal_(policy.model.label_head.weight, generator=torch.manual_seed(3))
    expected = policy.respond(PROMPTS).texts
    assert len(set(expected)) > 1
    write_merged(policy, tmp_path / "out")
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    config = PolicyConfig(str(tmp_path / "out"), dtype="float32", device="cpu")
    again = load_policy(config, sampling=Sampling(temperature=0.0))
    assert isinstance(again, LabelPolicy) and again.labels == ("a", "b", "c")
    assert again.respond(PROMPTS).texts == expected
