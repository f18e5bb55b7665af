"""Templates of others are kept from this machine's memory and time, and from Python."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from instructrec.errors import PolicyError
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.chat import PLAIN_TEMPLATE, ChatEncoder
from instructrec.policies.config import PolicyConfig
from instructrec.policies.scorer import load_scorer
from instructrec.policies.tiny import make_tiny_tokenizer
from instructrec.rewards import make_reward
from instructrec.template_trial import MAX_CHARACTERS, try_template

ESCAPES = [
    "{{ messages.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__.os.popen('touch pwned') }}",
    "{{ self._TemplateReference__context }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{% set x = messages.append({'role': 'system'}) %}",
]


BOMB = "{{ 'a' * 10**9 }}"


def tokenizer_with(template: str | dict[str, str]):
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template",
    [
        BOMB,
        "{{ 'ab' * 10**6 }}",
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x * 2 %}{% endfor %}",
        "a" * (MAX_CHARACTERS + 1),
    ],
)
def test_a_template_that_uses_up_memory_is_refused(template: str) -> None:
    with pytest.raises(PolicyError, match="more memory, time or room"):
        try_template(tokenizer_with(template), "mine")


def test_each_of_several_templates_is_tried_out() -> None:
    with pytest.raises(PolicyError, match=r"template 'tool_use' of 'mine' was not used"):
        try_template(tokenizer_with({"default": PLAIN_TEMPLATE, "tool_use": BOMB}), "mine")
    with pytest.raises(PolicyError, match=r"templates 'rag', 'tool_use': .* the name 'default'"):
        try_template(tokenizer_with({"rag": "a", "tool_use": "b"}), "mine")


def test_of_several_templates_the_default_one_is_used() -> None:
    several = tokenizer_with({"default": PLAIN_TEMPLATE, "tool_use": "tools"})
    try_template(several, "mine")
    alone = ChatEncoder(tokenizer_with(PLAIN_TEMPLATE), system_prompt="Hi", max_length=512)
    encoder = ChatEncoder(several, system_prompt="Hi", max_length=512)
    assert encoder.encode(["a"]) == alone.encode(["a"])
    assert encoder.template == alone.template


def test_templates_of_policies_and_reward_models_are_tried_out_when_they_are_loaded(
    tmp_path: Path,
) -> None:
    """A reward model is loaded in three ways: to be asked, to be trained on, and as a policy."""
    tiny = PolicyConfig(model="tiny", dtype="float32", device="cpu")
    load_scorer(tiny, head="score", seed=0).save(tmp_path / "scores")
    load_policy(tiny).save(tmp_path / "writes")
    for name in ("scores", "writes"):
        tokenizer_with({"default": PLAIN_TEMPLATE, "rag": BOMB}).save_pretrained(tmp_path / name)
    given = dataclasses.replace(tiny, model=str(tmp_path / "scores"))
    with pytest.raises(PolicyError, match="template 'rag'"):
        load_scorer(given, head="score", seed=0)
    with pytest.raises(PolicyError, match="template 'rag'"):
        load_policy(dataclasses.replace(tiny, model=str(tmp_path / "writes")))
    reward = make_reward("learned", path=str(tmp_path / "scores"), device="cpu")
    with pytest.raises(PolicyError, match="template 'rag'"):
        reward(["question"], ["answer"])


@pytest.mark.slow
def test_a_template_without_end_is_refused() -> None:
    forever = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(PolicyError, match="more memory, time or room"):
        try_template(tokenizer_with(forever), "mine")


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, "{{ raise_exception('no') }}", "{{ oops"])
def test_what_is_harmless_or_only_wrong_passes(template: str) -> None:
    try_template(tokenizer_with(template), "mine")


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_cannot_reach_python(template: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        chat = ChatEncoder(tokenizer_with(template), system_prompt="", max_length=512)
        texts = [chat._tokenizer.decode(ids) for ids in chat.encode(["hi"])]
    except PolicyError as refused:
        assert "template" in str(refused)
    else:
        assert all("class" not in text and "Template" not in text for text in texts)
    assert list(tmp_path.iterdir()) == []
