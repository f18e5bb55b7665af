"""The benchmark of the vector environment: what it counts, and when it fails."""

import json

import numpy as np
import pytest

from benchmarks import envs


def test_the_slope_is_that_of_the_memory():
    episodes = np.linspace(0, 2e6, 41)
    seen = {"episodes": episodes, "rss_mib": 50 + 3e-6 * episodes}
    assert envs.slope(seen) == pytest.approx(3.0)


def test_the_rates_count_episodes_by_both_clocks():
    seen = {"episodes": [0, 100, 300], "wall_s": [5, 6, 7], "cpu_s": [1.0, 1.5, 2.0]}
    rates = envs.rates({name: np.array(values, dtype=float) for name, values in seen.items()})
    assert rates == {"per_s": 150.0, "per_cpu_s": 300.0, "best_per_s": 200.0}


def test_what_was_measured_is_printed_and_written(tmp_path, capsys):
    file = tmp_path / "envs.json"
    assert envs.main(["--episodes", "2000", "--num_envs", "16", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["episodes"] >= 2000 and found["num_envs"] == 16
    assert found["per_cpu_s"] > 0 and found["ratio"] > 0
    assert "episodes of instructrec/ClosedAnswers-v0" in capsys.readouterr().out


def test_a_bound_that_is_passed_is_a_failure(capsys):
    few = ["--episodes", "400", "--num_envs", "8", "--check", "--most_mib", "1e9"]
    assert envs.main([*few, "--fewest_per_s", "1e12"]) == 1
    assert "too slow" in capsys.readouterr().err
    assert envs.main([*few, "--fewest_per_s", "0"]) == 0
    assert envs.main([*few, "--fewest_per_s", "0", "--most_mib=-1e9"]) == 1
    assert "memory grows" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_episodes(capsys):
    assert envs.main(["--episodes", "400000", "--check", "--fewest_per_s", "10000"]) == 0
