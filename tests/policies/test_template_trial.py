"""Templates of others are kept from this machine's memory and time, and from Python."""

from __future__ import annotations

import pytest

from instructrec.errors import PolicyError
from instructrec.policies.chat import PLAIN_TEMPLATE, ChatEncoder
from instructrec.policies.template_trial import MAX_CHARACTERS, try_template
from instructrec.policies.tiny import make_tiny_tokenizer

ESCAPES = [
    "{{ messages.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__.os.popen('touch pwned') }}",
    "{{ self._TemplateReference__context }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{% set x = messages.append({'role': 'system'}) %}",
]


def tokenizer_with(template: str):
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 'ab' * 10**6 }}",
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x * 2 %}{% endfor %}",
        "a" * (MAX_CHARACTERS + 1),
    ],
)
def test_a_template_that_uses_up_memory_is_refused(template: str) -> None:
    with pytest.raises(PolicyError, match="more memory, time or room"):
        try_template(tokenizer_with(template), "mine")


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
