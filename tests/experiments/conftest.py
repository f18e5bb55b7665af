"""Scripts by name, run folders made by hand, a browser, and training that takes no time."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.evaluation import evaluate
from instructrec.experiments.jsonl import write_json
from instructrec.experiments.runfolder import RunFolder, RunInfo, read_metrics
from instructrec.policies.config import Sampling
from instructrec.policies.scripted import RandomPolicy
from instructrec.rewards.combine import make_rewards


@pytest.fixture(scope="session")
def script_of(root: Path) -> Callable[[str], ModuleType]:
    """Loads a script of ``experiments/scripts`` as a module."""

    def load(name: str) -> ModuleType:
        file = root / "experiments" / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    return load


def report_row(i: int, response: str, score: float) -> dict[str, Any]:
    """A row of an evaluation with one reward."""
    return {
        "id": f"q{i}",
        "sample": 0,
        "prompt": f"question {i}",
        "response": response,
        "reference": "yes",
        "parts": {"match": score},
        "total": score,
        "status": {"match": "scored"},
        "stop_reason": "eos",
        "response_len": 3,
        "logprob": -1.0,
        "item": None,
        "family": "even" if i % 2 == 0 else "odd",
    }


def summary_of(mean: float) -> dict[str, Any]:
    """The summary of a training run whose evaluation came to that mean."""
    ends = {"mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1}
    return {
        **{f"eval/{part}/{k}": v for part in ("match", "total") for k, v in ends.items()},
        "eval_file": "eval/end-6.jsonl",
        "updates": 6,
        "best_update": 6,
        "stopped": "finished",
        "speed/episodes_per_s": 2.0,
        "speed/tokens_per_s": 30.0,
        "speed/limit_frac": 0.4,
    }


@pytest.fixture
def write_evaluation() -> Callable[..., Path]:
    """Writes the evaluation of 40 instructions, of which those below ``right`` score 1."""

    def write(
        path: Path, right: int, *, response: str = "no", tokens: int = 3, **header: Any
    ) -> Path:
        rows = [
            report_row(i, "yes" if i < right else response, float(i < right))
            | {"response_len": tokens}
            for i in range(40)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        about = {
            "task": "letters",
            "split": "test",
            "fingerprint": "f",
            "reward": {"match": 1.0},
            "weights": {"match": 1.0},
            "episodes": {"env": "instruction"},
            "sampling": {"temperature": 0.0},
            "samples": 1,
            "rows": 40,
        }
        write_json(path.with_suffix(".json"), about | header)
        return path

    return write


@pytest.fixture
def write_run(write_evaluation: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a training run of six updates; ``right`` None leaves it without an end."""

    def write(path: Path, *, right: int | None = 30, response: str = "no", **record: Any) -> Path:
        path.mkdir(parents=True)
        about = {
            "format_version": 1,
            "job_type": "train",
            "algorithm": "ppo",
            "variant": path.name,
            "seed": 0,
            "base_model": "tiny",
            "parent": None,
            "task": "letters",
            "status": "running" if right is None else "finished",
            "started": "2026-01-01T00:00:00+00:00",
            "finished": None if right is None else "2026-01-01T00:02:00+00:00",
            "command": ["instructrec", "train", "letters", "--resume"],
            "machine": {"cores": 2, "cpu": "a CPU", "memory_bytes": 2**33, "gpus": []},
            "versions": {"python": "3.11"},
        }
        write_json(path / "run.json", about | record)
        (path / "config.yaml").write_text(
            f"name: {path.name}\nrewards: {{match: 1.0}}\npolicy: {{train: full}}\n"
            "ppo: {num_updates: 6, learning_rate: 1.0e-4, response_length: 8}\n"
        )
        rows = [
            {
                "train/update": u,
                "reward/total/mean": 0.1 * u,
                "reward/match/mean": 0.1 * u,
                "ppo/kl_ref": 0.2 * u,
                "rollout/response_len": 3.0,
                **{f"time/{part}_s": 1.0 for part in ("rollout", "score", "advantage", "update")},
                "time/total_s": 5.0,
            }
            | ({"eval/total/mean": 0.1 * u, "eval/total/ci_low": 0.0} if u % 3 == 0 else {})
            for u in range(1, 7)
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        samples = [report_row(u, f"{response} {u}", 0.0) | {"update": u} for u in range(1, 7)]
        (path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
        (path / "warnings.jsonl").write_text('{"update": 2, "message": "looks odd"}\n')
        if right is not None:
            write_evaluation(path / "eval" / "end-6.jsonl", right, response=response)
            write_json(path / "summary.json", summary_of(right / 40))
        return path

    return write


class Browser:
    """Headless Chromium, driven over a pipe by the DevTools protocol."""

    def __init__(self, program: str, profile: Path) -> None:
        own_read, its_write = os.pipe()
        its_read, own_write = os.pipe()
        self._read, self._write = own_read, own_write
        self._rest, self._count, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        flags += ["--disable-dev-shm-usage", "--disable-background-networking"]

        def take_pipes() -> None:  # Chromium reads from 3 and writes to 4
            read, write = os.dup(its_read), os.dup(its_write)
            os.dup2(read, 3)
            os.dup2(write, 4)

        self._process = subprocess.Popen(
            [program, *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
            preexec_fn=take_pipes,
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_read)
        os.close(its_write)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and waits for its result; events are kept on the way."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._count:
            self.events.append(answer)
        assert "error" not in answer, answer
        found: dict[str, Any] = answer["result"]
        return found

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], 60)
            piece = os.read(self._read, 2**16) if ready else b""
            assert piece, "the browser says nothing more"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(
        self, page: Path, width: int = 1280, dark: bool = False, media: str = "screen"
    ) -> None:
        """Opens a file and waits until it is loaded."""
        self.events.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.send("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def run(self, script: str) -> Any:
        """What a script in the page returns."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """Errors, refusals and dialogs since the page was opened."""
        odd = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        odd += ("Page.javascriptDialogOpening",)
        return [event for event in self.events if event.get("method") in odd]

    def close(self) -> None:
        """Ends the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium or Chrome, where there is one; else the test is skipped."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"no browser here: looked for {', '.join(names)}")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


class QuickTraining:
    """Takes the place of ``run_training``: learns nothing, and answers by chance at the end.

    Attributes:
        curve: Validation score of a run after an update.
        before: Called before each update of a run; it may raise.
        trained: Folders that were trained, in order, with their first update.
    """

    def __init__(self) -> None:
        self.curve: Callable[[TrainConfig, int], float] = lambda config, update: update / 10
        self.before: Callable[[TrainConfig, int], None] = lambda config, update: None
        self.trained: list[tuple[str, int]] = []

    def __call__(
        self,
        config: TrainConfig,
        *,
        resume: bool = False,
        overwrite: bool = False,
        command: Sequence[str] | None = None,
        should_prune: Callable[[int, dict[str, float]], bool] = lambda update, metrics: False,
        say: Callable[[str], None] = print,
    ) -> None:
        """Trains one run."""
        config = config.resolved()
        resume = resume and config.folder.exists()
        info = RunInfo(
            "train", config.algorithm, config.resolved_variant, config.seed, "none", "parity"
        )
        folder = RunFolder.create(
            config.folder,
            info,
            config.to_dict(),
            resume=resume,
            overwrite=overwrite,
            command=command,
        )
        done = len(read_metrics(folder.path)) if resume else 0
        self.trained.append((folder.path.name, done + 1))
        stopped = "finished"
        with folder, folder.metrics_log() as log:
            for update in range(done + 1, config.ppo.num_updates + 1):
                self.before(config, update)
                metrics = {"eval/total/mean": self.curve(config, update)}
                log.write({"train/update": update, **metrics})
                if should_prune(update, metrics):
                    stopped = "pruned"
                    break
            self._finish(config, folder, update, stopped)

    def _finish(self, config: TrainConfig, folder: RunFolder, update: int, stopped: str) -> None:
        file = folder.eval_path("parity", "test", "greedy", update)
        evaluation = evaluate(
            RandomPolicy(config.seed),
            make_task("parity", split="test", size=20),
            make_rewards(config.reward_value()),
            sampling=Sampling(temperature=0.0),
            out=file,
        )
        summary = {"eval_file": str(file.relative_to(folder.path)), "best_update": update}
        folder.finish("finished", {**evaluation.metrics(), **summary, "stopped": stopped})


@pytest.fixture
def quick_training() -> QuickTraining:
    """Training that takes no time."""
    return QuickTraining()


class FakeRun:
    """Takes down tables and the end."""

    url, dir = "https://example.org/run", "/somewhere/offline-run-x/files"

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}

    def define_metric(self, name: str, **options: Any) -> None:
        pass

    def log(self, values: dict[str, Any]) -> None:
        self.tables |= values

    def finish(self, exit_code: int) -> None:
        self.summary["exit_code"] = exit_code


class FakeTable:
    def __init__(self, columns: list[str], log_mode: str, allow_mixed_types: bool) -> None:
        self.columns, self.data = columns, list[tuple[Any, ...]]()

    def add_data(self, *values: Any) -> None:
        self.data.append(values)


class FakeWandb:
    """The module wandb, as far as a run of tables needs it."""

    Table = FakeTable

    def __init__(self) -> None:
        self.run, self.opened = FakeRun(), dict[str, Any]()

    @staticmethod
    def Settings(**options: Any) -> dict[str, Any]:
        return options

    def init(self, **options: Any) -> FakeRun:
        self.opened = options
        return self.run


@pytest.fixture
def fake_wandb() -> FakeWandb:
    """Takes down what one run sends."""
    return FakeWandb()
