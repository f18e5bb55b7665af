"""Keys that a run could see are in no byte of what runs, crashes and reports leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
IN_ENVIRONMENT = {
    "WANDB_API_KEY": "c4n4ryw" * 6,
    "HF_TOKEN": "hf_c4n4ryhubc4n4ryhubc4n4ry",
    "MENTOR_API_KEY": "c4n4rymentor-0123456789",
}
IN_AN_ADDRESS = "c4n4ryuser:c4n4rypassword"
IN_AN_OPTION = "c4n4ryoption"
REWARD = '''
import os

CALLS = []


def keyed(completions, **columns):
    """A service that refuses its key, and says so."""
    CALLS.append(1)
    if len(CALLS) == 2 or "CRASH" in os.environ:
        key = os.environ["MENTOR_API_KEY"]
        raise RuntimeError(f"401: wrong key {key} for https://ADDRESS@mentor.example/v1")
    return [float(len(text) % 3) / 2 for text in completions]
'''


def command(place: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-m", "instructrec.experiments.cli", *words],
        cwd=place,
        env={
            **kept,
            **IN_ENVIRONMENT,
            "HOME": str(place / "home"),
            "WANDB_MODE": "offline",
            **variables,
        },
        capture_output=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def test_no_key_is_left_anywhere(tmp_path: Path) -> None:
    place, code = tmp_path / "place", tmp_path / "code"
    place.mkdir()
    code.mkdir()
    (code / "rewards.py").write_text(REWARD.replace("ADDRESS", IN_AN_ADDRESS), encoding="utf-8")
    train = ("train", "tiny_smoke", "--ppo.num_updates", "3", "--eval.limit", "4")
    reward = ("--rewards.keyed.use", f"{code / 'rewards.py'}:keyed", "--rewards.keyed.on_error")
    option = ("--rewards.keyed.options", f"{{api_key: {IN_AN_OPTION}}}")
    address = ("--rewards.keyed.options", f"{{url: 'https://{IN_AN_ADDRESS}@mentor.example/v1'}}")
    stages: list[dict[str, tuple[tuple[str, ...], dict[str, str]]]] = [
        {
            "crashed": ((*train, *reward, "raise", "--name", "a", "--debug"), {"CRASH": "1"}),
            "masked": ((*train, *reward, "mask", "--name", "b"), {}),
            "key in settings": ((*train, *reward, "mask", *option, "--name", "c"), {}),
            "address in settings": ((*train, *reward, "mask", *address, "--name", "d"), {}),
            "unknown option": ((*train, "--hub_token", IN_AN_OPTION), {}),
            "judge": (("evaluate", f"https://{IN_AN_ADDRESS}@mentor.example/v1"), {}),
        },
        {"report": (("report", "runs/b"), {}), "crash report": (("report", "runs/a"), {})},
    ]
    done: dict[str, subprocess.CompletedProcess[bytes]] = {}
    for stage in stages:  # what needs nothing of the others runs beside them
        with ThreadPoolExecutor(2) as pool:
            started = {
                name: pool.submit(command, place, *words, **variables)
                for name, (words, variables) in stage.items()
            }
        done |= {name: future.result() for name, future in started.items()}
    codes = {name: result.returncode for name, result in done.items()}
    assert codes.pop("crash report") in (0, 3), done["crash report"].stderr
    assert codes == {
        **{"crashed": 5, "masked": 0, "report": 0, "key in settings": 2},
        **{"address in settings": 2, "unknown option": 2, "judge": 2},
    }, done
    assert b"wrong key *** for" in done["crashed"].stderr
    assert not (place / "runs" / "c").exists() and not (place / "runs" / "d").exists()
    left = {str(file): file.read_bytes() for file in place.rglob("*") if file.is_file()}
    assert any("checkpoints" in name for name in left) and any(".wandb" in name for name in left)
    left |= {f"{name}, stdout": result.stdout for name, result in done.items()}
    left |= {f"{name}, stderr": result.stderr for name, result in done.items()}
    leaks = [name for name, content in left.items() if b"c4n4ry" in content.lower()]
    assert leaks == []
