from __future__ import annotations

from typing import Any

import pytest

from instructrec.errors import PolicyError
from instructrec.policies.chat import ChatEncoder, prepare_tokenizer
from instructrec.policies.tiny import make_tiny_tokenizer

INJECTING = (
    "{% if messages[0]['role'] != 'system' %}I am Bot. {% endif %}"
    "{% for m in messages %}[{{ m['role'] }}:{{ m['content'] }}]{% endfor %}"
)
REFUSING = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{{ m['content'] }}{% endfor %}"
)
DROPPING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
)


def encoder(template: str | None = None, system: str = "", window: int = 512) -> Any:
    tokenizer = make_tiny_tokenizer()
    if template:
        tokenizer.chat_template = template
    chat = ChatEncoder(tokenizer, system_prompt=system, max_length=window)
    return lambda *prompts: [tokenizer.decode(ids) for ids in chat.encode(prompts)]


def test_a_string_becomes_a_system_and_a_user_message() -> None:
    assert encoder(INJECTING, "Be brief.")("hi") == ["[system:Be brief.][user:hi]"]


def test_an_empty_system_prompt_is_sent_so_that_the_template_adds_none() -> None:
    assert encoder(INJECTING)("hi") == ["[system:][user:hi]"]


def test_a_conversation_keeps_its_own_system_message_and_else_gets_ours() -> None:
    own = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert encoder(INJECTING, "ours")(own, own[1:]) == [
        "[system:S][user:U]",
        "[system:ours][user:U]",
    ]


def test_a_template_that_refuses_system_messages_gets_none_when_it_is_empty() -> None:
    assert encoder(REFUSING)("hi") == ["hi"]


def test_a_system_prompt_that_the_template_refuses_or_drops_is_an_error() -> None:
    with pytest.raises(PolicyError, match=r"refuses system messages.*'Be brief.'"):
        encoder(REFUSING, "Be brief.")
    with pytest.raises(PolicyError, match="drops the system message"):
        encoder(DROPPING, "Be brief.")


def test_a_prompt_longer_than_the_window_names_both_lengths_and_the_prompt() -> None:
    with pytest.raises(PolicyError, match=r"prompt 1 has 31 tokens.* holds 20 .*'xxxx"):
        encoder(window=20)("short", "x" * 30)


def test_an_empty_conversation_is_an_error() -> None:
    with pytest.raises(PolicyError, match="empty conversation"):
        encoder()([])


def test_no_prompts_encode_to_nothing() -> None:
    assert encoder()() == []


def test_a_tokenizer_without_pad_token_pads_with_its_end_token() -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.pad_token = None
    assert prepare_tokenizer(tokenizer, "mine").pad_token_id == tokenizer.eos_token_id


def test_a_tokenizer_without_end_token_is_refused() -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(PolicyError, match="'mine' has no eos token"):
        prepare_tokenizer(tokenizer, "mine")


def test_a_tokenizer_without_chat_template_gets_plain_lines() -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = None
    prepare_tokenizer(tokenizer, "mine")
    chat = ChatEncoder(tokenizer, system_prompt="Be brief.", max_length=512)
    messages = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2"},
    ]
    assert [tokenizer.decode(ids) for ids in chat.encode(["hi", messages])] == [
        "Be brief.\nUser: hi\nAssistant:",
        "Be brief.\nUser: 1+1\nAssistant: 2<|im_end|>\nUser: 2+2\nAssistant:",
    ]


def test_plain_lines_begin_with_the_start_token_where_the_tokenizer_puts_one() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 256)]
    )
    prepare_tokenizer(tokenizer, "mine")
    ids = ChatEncoder(tokenizer, system_prompt="", max_length=512).encode(["hi"])[0]
    assert ids[0] == 256 and ids.count(256) == 1
