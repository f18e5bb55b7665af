"""Named phases: told to whoever listens, and nothing otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from instructrec.phases import listening, phase


def test_phases_are_told_while_somebody_listens() -> None:
    told: list[str] = []

    @contextmanager
    def listener(name: str) -> Iterator[None]:
        told.append(name)
        yield
        told.append(f"end of {name}")

    with phase("before"):
        pass
    with pytest.raises(KeyError), listening(listener), phase("decode"):
        raise KeyError
    with phase("after"):
        pass
    assert told == ["decode"]
    with listening(listener), phase("prefill"):
        pass
    assert told[1:] == ["prefill", "end of prefill"]
