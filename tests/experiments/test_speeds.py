"""The speed of a run in short."""

from __future__ import annotations

from instructrec.experiments.speeds import in_words, median_speeds, seconds_until


def test_the_median_is_over_the_rows_that_have_the_number() -> None:
    rows = [
        {"sft/step": 0.0, "sft/val_loss": 1.0},
        {"sft/step": 1.0, "speed/tokens_per_s": 1.0, "speed/limit_frac": 0.5},
        {"sft/step": 2.0, "speed/tokens_per_s": 9.0, "speed/limit_frac": None},
        {"sft/step": 3.0, "speed/tokens_per_s": 3.0},
    ]
    assert median_speeds(rows) == {"speed/limit_frac": 0.5, "speed/tokens_per_s": 3.0}
    assert median_speeds([]) == {}


def test_what_is_not_known_is_not_said() -> None:
    found = {"speed/tokens_per_s": 1234.5}
    assert in_words({}) == "" and in_words(found) == "1,234 tokens/s"
    found |= {"speed/limit_frac": 0.256, "speed/update_flops_per_s": 6e10}
    found |= {"speed/update_limit_frac": 0.4}
    assert in_words(found) == (
        "1,234 tokens/s, 26% of what this machine could do at most; optimizer steps at 60 GFLOP/s, "
        "40% of its matrix rate"
    )
    assert in_words({"speed/episodes_per_s": 0.25} | found).startswith("0.25 episodes/s, 1,234 tok")
    assert "busy" not in in_words(found)
    told = in_words(found | {"speed/update_limit_frac": 1.2})
    assert told.endswith(
        "120% of its matrix rate (more than all of it: its rates were measured too low, as when it "
        "was busy)"
    )


def test_the_time_of_a_run_that_goes_on_has_the_updates_before_in_it() -> None:
    rows = [
        {"train/update": float(i), "time/update_s": 1.0, "time/total_s": 10.0} for i in range(1, 5)
    ]
    assert seconds_until(rows, 3) == 30.0
    steps = [{"sft/step": 0.0, "sft/val_loss": 1.0}]
    steps += [{"sft/step": float(i), "time/update_s": 2.0} for i in range(1, 4)]
    assert seconds_until(steps, 2) == 4.0 and seconds_until([], 2) == 0.0
