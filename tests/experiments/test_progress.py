from __future__ import annotations

import io

import pytest
from rich.console import Console

from instructrec.experiments.progress import Progress, format_duration


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def metrics(update, **more):
    return {
        "train/update": float(update),
        "reward/total/mean": 0.5,
        "ppo/kl_ref": 0.011,
        "rollout/response_len": 4.5,
        "rollout/tokens_per_s": 1234.0,
        **more,
    }


def watch(terminal=False, **options):
    clock, out = Clock(), io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    return Progress(10, console=console, clock=clock, **options), clock, out


def test_without_a_terminal_every_update_is_one_plain_line():
    progress, clock, out = watch()
    with progress:
        clock.now += 30
        progress.update(metrics(1))
        progress.note("W&B offline [bold]; " + "a long path/" * 20)
    first, second = out.getvalue().splitlines()
    assert first == (
        "update 1/10  reward 0.500  KL 0.011  length 4.5  tokens/s 1,234  4 min 30 s left"
    )
    assert second == "W&B offline [bold]; " + "a long path/" * 20
    assert "\x1b" not in out.getvalue()


def test_the_time_left_is_the_mean_of_the_updates_done_here():
    progress, clock, _ = watch(start=4)
    with progress:
        clock.now += 20
        progress.update(metrics(5))
        assert progress.line().endswith("1 min 40 s left")
        clock.now += 40
        progress.update(metrics(6))
        assert progress.line().endswith("2 min 00 s left")
        clock.now += 120
        progress.update(metrics(10))
        assert "left" not in progress.line()


def test_the_best_evaluation_is_remembered():
    progress, _, _ = watch()
    with progress:
        for update, score in ((2, 0.5), (4, 0.75), (6, 0.625)):
            progress.update(metrics(update, **{"eval/total/mean": score}))
        progress.update(metrics(7))
    assert "eval 0.625  best eval 0.750 at 4" in progress.line()


def test_a_continued_run_remembers_the_best_evaluation_before_it():
    progress, _, _ = watch()
    with progress:
        progress.recall([metrics(2, **{"eval/total/mean": 0.75}), metrics(3)])
        progress.update(metrics(4, **{"eval/total/mean": 0.625}))
    assert "eval 0.625  best eval 0.750 at 2" in progress.line()


def test_a_missing_number_is_left_out():
    progress, _, _ = watch()
    with progress:
        progress.update(
            {"train/update": 1.0, "reward/total/mean": None, "ppo/kl_ref": float("nan")}
        )
    assert progress.line() == "update 1/10  0 s left"


def test_supervised_steps_show_their_loss():
    progress, _, out = watch(unit="step")
    with progress:
        progress.update({"sft/step": 3, "sft/loss": 1.25})
    assert out.getvalue().startswith("step 3/10  loss 1.250")


def test_quiet_shows_nothing():
    progress, _, out = watch(quiet=True, terminal=True)
    with progress:
        progress.update(metrics(1))
        progress.note("hello")
    assert out.getvalue() == ""


def test_a_terminal_shows_bar_numbers_and_notes():
    progress, clock, out = watch(terminal=True)
    with progress:
        clock.now += 30
        progress.note("saved to [runs]/a")
        progress.update(metrics(1, **{"eval/total/mean": 0.5}))
    shown = out.getvalue()
    for text in ("1/10", "10%", "4 min 30 s left", "tokens/s", "best eval", "saved to [runs]/a"):
        assert text in shown
    assert shown.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_an_error_leaves_the_terminal_as_it_was():
    progress, _, out = watch(terminal=True)

    def work():
        with progress:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert out.getvalue().rstrip().endswith("\x1b[?25h")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (90061, "25 h 01 min"),
    ],
)
def test_durations_are_written_for_people(seconds, text):
    assert format_duration(seconds) == text
