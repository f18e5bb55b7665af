from __future__ import annotations

import pytest
import torch
from torch import nn

from instructrec.errors import ConfigError
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import LoraSettings, PolicyConfig
from instructrec.policies.dropout import dropout

IDS = torch.arange(20)[None]


def load(**changes):
    return load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu", **changes))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_a_model_has_dropout_while_it_trains_and_not_after() -> None:
    model = load().model
    plain = logits(model)
    with dropout(model, 0.5, "sft"):
        model.train()
        assert not torch.equal(logits(model), logits(model))
        model.eval()
        assert torch.equal(logits(model), plain)
    model.train()
    assert torch.equal(logits(model), plain)


def test_layers_get_it_and_adapters_keep_their_own() -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0))
    with dropout(layer, 0.25, "sft"):
        assert layer[1].p == 0.25
    assert layer[1].p == 0.0
    model = load(train="lora", lora=LoraSettings(r=2, dropout=0.1)).model
    shares = [m.p for n, m in model.named_modules() if "lora_dropout" in n and hasattr(m, "p")]
    with dropout(model, 0.5, "sft"):
        assert set(shares) == {0.1}
        now = [m.p for n, m in model.named_modules() if "lora_dropout" in n and hasattr(m, "p")]
        assert now == shares


def test_a_model_without_dropout_is_refused() -> None:
    refused = pytest.raises(ConfigError, match=r"dpo\.dropout = 0\.1: Linear has neither")
    with refused, dropout(nn.Linear(2, 2), 0.1, "dpo"):
        pass
    with dropout(nn.Linear(2, 2), 0.0, "dpo"):
        pass
