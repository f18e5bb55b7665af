"""Stopping on request: which signals ask, which insist, and which are left alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from instructrec.experiments.interruption import StopRequest


@pytest.fixture
def hangups() -> Iterator[None]:
    """A process that such signals end, as at a terminal: whoever runs the tests may ignore them."""
    numbers = (signal.SIGHUP, signal.SIGUSR1)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_asks_while_somebody_attends(number: signal.Signals) -> None:
    with StopRequest() as stop, stop.attended():
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested


def test_a_signal_while_nobody_attends_stops_at_once() -> None:
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_hangup_may_be_said_twice(number: signal.Signals) -> None:
    with StopRequest() as stop, stop.attended():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
    assert stop.requested


@pytest.mark.usefixtures("hangups")
def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop, stop.attended():
        os.kill(os.getpid(), signal.SIGHUP)
    assert not stop.requested
