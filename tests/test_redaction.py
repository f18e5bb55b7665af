"""What is a key is hidden or refused; what only looks a little like one is left alone."""

from __future__ import annotations

import pytest

from instructrec.errors import ConfigError
from instructrec.experiments.cli import _show_warning, main
from instructrec.experiments.config import EvaluateConfig, TaskConfig, TrainConfig
from instructrec.experiments.jsonl import dump_line, plain
from instructrec.experiments.listing import inert
from instructrec.experiments.machine import command_line
from instructrec.experiments.progress import Progress
from instructrec.faults import LONGEST, Fault
from instructrec.redaction import is_named_secret, redacted, refuse_secrets
from instructrec.rewards.parts import RewardSpec

CANARY = "c4n4ry-0123456789"


@pytest.mark.parametrize(
    "name",
    [
        *("api_key", "apikey", "judge.api-key", "rewards.judge.options.token", "hf_token", "TOKEN"),
        *(
            "password",
            "db_password",
            "secret",
            "client_secret",
            "access_key",
            "options.credentials",
        ),
    ],
)
def test_names_of_keys_are_known(name: str) -> None:
    assert is_named_secret(name)


@pytest.mark.parametrize(
    "name",
    ["api_key_env", "max_tokens", "eos_token", "stop_token", "tokenizer", "key", "keys", "monkey"],
)
def test_names_of_other_things_are_left_alone(name: str) -> None:
    assert not is_named_secret(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://me:pw@host/v1", "see https://***@host/v1"),
        ("https://host/v1?api_key=abc&x=1", "https://host/v1?api_key=***&x=1"),
        ("token hf_abcdefghijklmnopqrstuvwx is wrong", "token *** is wrong"),
        ("sk-proj-abcdefghijklmnopqrstuvwx", "***"),
        ("write to me@example.org", "write to me@example.org"),
        ("https://host/v1?page=2#top", "https://host/v1?page=2#top"),
    ],
)
def test_what_looks_like_a_key_is_hidden(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_values_of_variables_are_hidden_wherever_they_stand(monkeypatch) -> None:
    monkeypatch.setenv("MY_SERVICE_API_KEY", CANARY)
    monkeypatch.setenv("MY_SERVICE_TOKEN", f"{CANARY}-and-more")
    monkeypatch.setenv("SHORT_KEY", "abc")
    assert redacted(f"401 for {CANARY}-and-more, {CANARY}; abc") == "401 for ***, ***; abc"
    row = {"message": f"it said {CANARY}", "parts": [{"a": (CANARY, 1.5)}]}
    assert plain(row) == {"message": "it said ***", "parts": [{"a": ["***", 1.5]}]}
    assert CANARY.encode() not in dump_line(row)


def test_numbers_and_other_texts_are_written_as_they_are(monkeypatch) -> None:
    monkeypatch.setenv("BUILD_KEY", "12345678")
    row = {"n": 12345678, "x": 0.12345678, "text": "https://me:pw@host hf_" + "a" * 30}
    assert plain(row) == row


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"task": TaskConfig(options={"api_key": CANARY})}, "task.options.api_key"),
        (
            {"rewards": {"j": RewardSpec("m:f", options={"token": CANARY})}},
            "rewards.j.options.token",
        ),
        ({"rewards": {"j": RewardSpec("m:f", options={"url": "http://u:p@h"})}}, "j.options.url"),
        ({"rewards": {"j": RewardSpec("m:f", options={"words": ["a", CANARY]})}}, "options.words"),
    ],
)
def test_a_run_with_a_key_in_its_settings_never_begins(monkeypatch, settings, key) -> None:
    monkeypatch.setenv("MY_SERVICE_API_KEY", CANARY)
    with pytest.raises(ConfigError, match=rf"{key}.*environment variable") as refused:
        TrainConfig(**settings)
    assert CANARY not in str(refused.value) and "u:p" not in str(refused.value)


def test_evaluations_refuse_keys_too_and_names_of_variables_are_allowed() -> None:
    with pytest.raises(ConfigError, match=r"options\.password"):
        EvaluateConfig(options={"password": "x"})
    refuse_secrets({"options": {"api_key_env": "MY_SERVICE_API_KEY", "token": None, "api_key": ""}})


def test_command_lines_lose_addresses_with_passwords(monkeypatch) -> None:
    monkeypatch.setenv("MY_SERVICE_API_KEY", CANARY)
    given = ["evaluate", "https://me:pw@host/v1", f"--x=[{CANARY}]", "--eos_token", "</s>"]
    assert command_line(given) == [
        "evaluate",
        "https://***@host/v1",
        "--x=[***]",
        "--eos_token",
        "***",
    ]


def test_messages_neither_steer_the_terminal_nor_show_keys(monkeypatch, capsys) -> None:
    monkeypatch.setenv("MY_SERVICE_API_KEY", CANARY)
    hostile = f"\x1b[2J\u202eolleh {CANARY}"
    assert main(["train", hostile]) == 2
    _show_warning(hostile, UserWarning, "", 0)
    Progress(3).note(hostile)
    err = capsys.readouterr().err
    assert not set("\x1b\u202e") & set(err) and CANARY not in err
    assert err.count("\\x1b[2J\\u202eolleh ***") == 3


def test_a_list_of_markdown_holds_no_links_images_html_or_code() -> None:
    hostile = "![x](http://t/x.png) <img src=http://t/y>\n\n# `head`"
    assert inert(hostile) == r"!\[x\](http://t/x.png) \<img src=http://t/y\> # \`head\`"


def test_a_fault_is_redacted_before_it_is_cut(monkeypatch) -> None:
    monkeypatch.setenv("MY_SERVICE_API_KEY", CANARY)
    message = "x" * (LONGEST - 5) + CANARY
    assert Fault("reward", "raised", "r", message).message == "x" * (LONGEST - 5) + "***"
    assert Fault("reward", "raised", "r", "https://me:pw@h").message == "https://***@h"
