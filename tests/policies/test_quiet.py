from __future__ import annotations

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
