from __future__ import annotations

import logging

import pytest

from instructrec.policies.quiet import without_wandb_note


def test_only_the_note_is_dropped(capsys):
    with without_wandb_note():
        print("before")
        print("[INFO] Running in WANDB offline mode")
        print("after")
    assert capsys.readouterr().out == "before\nafter\n"


def test_what_was_printed_before_an_error_comes_out(capsys):
    try:
        with without_wandb_note():
            print("a real message")
            raise ValueError
    except ValueError:
        pass
    assert capsys.readouterr().out == "a real message\n"


@pytest.mark.parametrize(
    ("name", "chatter"),
    [
        ("torchao", "Failed to load /somewhere/_C_mxfp8.so: no such library"),
        ("torch.utils._pytree", "Calling register_constant() on Enum subclasses is deprecated"),
        ("bitsandbytes.backends.cpu.ops", "please install kernels-community/quantization"),
    ],
)
def test_optional_libraries_do_not_talk_of_what_is_never_used(name: str, chatter: str) -> None:
    heard: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    logger.addHandler(listener)
    try:
        logger.warning(chatter)
        logger.warning("Something real")
    finally:
        logger.removeHandler(listener)
    assert heard == ["Something real"]
