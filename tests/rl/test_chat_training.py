"""Training on conversations: the tiny model learns to heed what the simulated user asks for."""

from __future__ import annotations

import json

import pytest

from instructrec.envs.chat import ChatVectorEnv


def is_letter(text):
    return len(text) == 1 and text.isascii() and text.islower()


def heeds(conversation, **columns):
    """1.0 for a letter as the last answer after a first one that is another character."""
    said = [[m["content"] for m in c if m["role"] == "assistant"] for c in conversation]
    return [
        float(is_letter(texts[-1]) and texts[0].isascii() and not is_letter(texts[0]))
        for texts in said
    ]


def talk(size, path):
    """Conversations of two answers; the last one earns the reward of the whole."""
    path.write_text((json.dumps({"prompt": "go", "reference": "a"}) + "\n") * 64)
    options = {"task": str(path), "split": "all", "reward": heeds, "observe": "last"}
    return ChatVectorEnv(size, autoreset_mode="DISABLED", user=["now a letter"], **options)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_it_learns_to_do_what_the_user_asks_for(toy, tmp_path, seed):
    """Whoever says the same in both turns gets nothing: the user has to be heeded."""
    toy.learns(talk(64, tmp_path / "go.jsonl"), seed)
