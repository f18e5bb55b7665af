from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import pytest

from instructrec.experiments.tracking import (
    NullTracker,
    TrackingConfig,
    distributions,
    open_tracking,
)

NAMES = {"name": "ppo-parity-s1", "job_type": "train", "group": "ppo-parity"}
ROWS = [
    {"update": 1, "id": "a", "prompt": "2?", "response": "even", "parts": {"exact": 1.0}},
    {"update": 1, "id": "b", "prompt": [{"role": "user", "content": "3?"}], "parts": {}},
]


class FakeRun:
    url = "https://example.org/run"
    dir = "/somewhere/offline-run-x/files"

    def __init__(self, broken=()):
        self.broken = set(broken)
        self.logged, self.metrics, self.summary, self.exit_code = [], [], {}, None
        self.best, self.alerts, self.artifacts, self.used = {}, [], [], []

    def define_metric(self, name, step_metric=None, summary=None):
        self._fail("define_metric")
        self.metrics.append((name, step_metric))
        if summary is not None:
            self.best[name] = summary

    def alert(self, title, text, level, wait_duration):
        assert len(title) < 64 and wait_duration < 1  # two in a minute are two
        self.alerts.append((title, text, level))

    def use_artifact(self, name, type):
        self._fail("use_artifact")
        self.used.append((name, type))

    def log_artifact(self, artifact):
        self.artifacts.append(artifact)

    def log(self, values, **options):
        self._fail("log")
        assert not options  # never step=
        self.logged.append(values)
        for table in values.values():
            if isinstance(table, FakeTable):
                table.log()

    def finish(self, exit_code):
        self._fail("finish")
        self.exit_code = exit_code

    def _fail(self, what):
        if what in self.broken:
            raise RuntimeError(f"{what} is broken")


class FakeTable:
    def __init__(self, columns, log_mode, allow_mixed_types):
        self.columns, self.log_mode, self.data = columns, log_mode, []
        self.increments, self._logged = [], 0

    def add_data(self, *values):
        self.data.append(values)

    def log(self):  # what wandb reads of an incremental table
        self.increments.append(self.data[self._logged :])
        self._logged = len(self.data)


class FakeHistogram:
    def __init__(self, np_histogram):
        self.counts, self.edges = np_histogram


class FakeArtifact:
    def __init__(self, name, type, metadata):
        self.name, self.type, self.metadata, self.folders = name, type, metadata, []

    def add_dir(self, folder, policy, skip_cache):
        assert policy == "immutable" and skip_cache  # no copy of the weights
        self.folders.append(folder)


class FakeWandb:
    """The part of the module that is used; ``refused`` modes cannot be opened."""

    Table, Histogram, Artifact = FakeTable, FakeHistogram, FakeArtifact

    def __init__(self, run=None, key=False, refused=()):
        self.run, self.key, self.refused = run or FakeRun(), key, refused
        self.inits = []

    def login(self, **options):
        assert options == {"prompt": False, "verify": False}
        return self.key

    @staticmethod
    def Settings(**options):
        return options

    def init(self, **options):
        self.inits.append(options)
        if options["mode"] in self.refused:
            raise ConnectionError("no way out")
        return self.run


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        os.environ.pop(name, None)


def start(folder, wandb, config=None, **options):
    notes = []
    config = config or TrackingConfig()
    tracker = open_tracking(
        config, folder, **{**NAMES, "note": notes.append, "wandb": wandb, **options}
    )
    return tracker, notes


@pytest.mark.parametrize(
    ("config", "env", "key", "mode"),
    [
        ("auto", None, False, "offline"),
        ("auto", None, True, "online"),
        ("auto", "offline", True, "offline"),
        ("auto", "dryrun", True, "offline"),
        ("auto", "online", True, "online"),
        ("auto", "online", False, "offline"),
        ("auto", "disabled", True, "disabled"),
        ("auto", "", True, "online"),
        ("offline", "online", True, "offline"),
        ("online", "disabled", True, "online"),
        ("online", None, False, "offline"),
        ("disabled", "online", True, "disabled"),
    ],
)
def test_the_mode_is_resolved_without_asking(tmp_path, monkeypatch, config, env, key, mode):
    if env is not None:
        monkeypatch.setenv("WANDB_MODE", env)
    wandb = FakeWandb(key=key)
    tracker, _ = start(tmp_path, wandb, TrackingConfig(mode=config))
    assert tracker.mode == mode
    assert [init["mode"] for init in wandb.inits] == ([] if mode == "disabled" else [mode])


def test_online_without_a_key_asks_nobody_and_says_so(tmp_path):
    _, notes = start(tmp_path, FakeWandb(), TrackingConfig(mode="online"))
    assert "WARNING: no W&B key was found" in notes[0] and "wandb sync" in notes[0]


def test_the_run_is_named_and_grouped(tmp_path):
    wandb = FakeWandb()
    config = TrackingConfig(project="answers", tags=("mine", "ppo"))
    start(tmp_path, wandb, config, tags=["ppo", "tiny"], run_config={"ppo": {"lam": (1.0,)}})
    init = wandb.inits[0]
    assert (init["project"], init["group"], init["name"]) == (
        "answers",
        "ppo-parity",
        "ppo-parity-s1",
    )
    assert init["job_type"] == "train"
    assert init["tags"] == ["ppo", "tiny", "mine"]
    assert init["config"] == {"ppo": {"lam": [1.0]}}
    assert init["settings"]["init_timeout"] == 30
    assert ("*", "train/update") in wandb.run.metrics


def test_everything_stays_inside_the_run_folder(tmp_path):
    wandb = FakeWandb()
    start(tmp_path / "run", wandb)
    assert wandb.inits[0]["dir"] == str(tmp_path / "run")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        assert os.environ[name].startswith(str(tmp_path / "run"))
    start(tmp_path / "next", FakeWandb())
    assert os.environ["WANDB_DATA_DIR"].startswith(str(tmp_path / "next"))


def test_a_folder_that_the_user_has_set_is_respected(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "mine"))
    start(tmp_path / "run", FakeWandb())
    assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "mine")


def test_a_continued_run_keeps_its_id(tmp_path):
    first, second = FakeWandb(), FakeWandb()
    start(tmp_path, first)
    start(tmp_path, second)
    assert first.inits[0]["id"] == second.inits[0]["id"]


def test_an_unreachable_server_means_offline_with_one_line(tmp_path):
    wandb = FakeWandb(key=True, refused=("online",))
    tracker, notes = start(tmp_path, wandb)
    assert tracker.mode == "offline"
    assert [init["mode"] for init in wandb.inits] == ["online", "offline"]
    assert wandb.inits[0]["id"] != wandb.inits[1]["id"]
    assert wandb.inits[0]["settings"] is not wandb.inits[1]["settings"]
    assert len(notes) == 1
    assert notes[0].startswith("WARNING")
    assert "no way out" in notes[0]
    assert "wandb sync /somewhere/offline-run-x" in notes[0]


def test_a_wandb_that_cannot_start_lets_the_run_go_on(tmp_path):
    with pytest.warns(RuntimeWarning, match="goes on without it .*no way out"):
        tracker, _ = start(tmp_path, FakeWandb(refused=("online", "offline")))
    assert isinstance(tracker, NullTracker)
    tracker.log({"train/update": 1.0})
    tracker.log_samples(ROWS)
    tracker.finish("finished", {"eval/total/mean": 0.5})


@pytest.mark.parametrize("broken", ["log", "finish"])
def test_a_failure_on_the_way_is_one_warning_and_then_silence(tmp_path, broken):
    tracker, _ = start(tmp_path, FakeWandb(FakeRun(broken={broken})))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for update in range(3):
            tracker.log({"train/update": update})
            tracker.log_samples(ROWS)
        tracker.finish("finished")
    assert len(caught) == 1
    assert re.search(f"the run goes on .*{broken} is broken", str(caught[0].message))


def test_numbers_that_are_missing_are_not_sent(tmp_path):
    wandb = FakeWandb()
    tracker, _ = start(tmp_path, wandb)
    tracker.log({"train/update": 1.0, "ppo/kl_ref": float("nan"), "ppo/lr": 0.1, "x": None})
    assert wandb.run.logged == [{"train/update": 1.0, "ppo/lr": 0.1}]


def test_samples_grow_one_table_on_the_axis_of_updates(tmp_path):
    wandb = FakeWandb()
    tracker, _ = start(tmp_path, wandb)
    tracker.log_samples(ROWS)
    tracker.log_samples([])
    tracker.log_samples([{"update": 2, "id": "c", "unknown": 1}])
    first, second = wandb.run.logged
    table = first["samples"]
    assert table is second["samples"]
    assert table.log_mode == "INCREMENTAL"
    assert table.columns == ["update", "id", "prompt", "response", "exact"]
    said = "[{'role': 'user', 'content': '3?'}]"
    assert table.increments == [
        [(1, "a", "2?", "even", 1.0), (1, "b", said, None, None)],
        [(2, "c", None, None, None)],
    ]
    assert not any(table.data)  # nothing that was sent stays in memory
    assert (first["train/update"], second["train/update"]) == (1, 2)


def test_a_long_run_sends_its_samples_ever_more_rarely_and_loses_none(tmp_path):
    wandb = FakeWandb()
    tracker, _ = start(tmp_path, wandb)
    for update in range(1, 1002):
        tracker.log_samples([{"update": update}])
    sent = [values["train/update"] for values in wandb.run.logged]
    assert sent[:25] == list(range(1, 26)) and len(sent) < 250
    tracker.finish("finished")
    assert wandb.run.logged[-1]["train/update"] == 1001
    increments = wandb.run.logged[-1]["samples"].increments
    assert [row for rows in increments for row in rows] == [(update,) for update in range(1, 1002)]


def test_every_update_shows_how_its_episodes_are_distributed(tmp_path):
    wandb = FakeWandb()
    tracker, _ = start(tmp_path, wandb)
    episodes = [
        {"parts": {"exact": 1.0, "style": None}, "total": 0.5, "response_len": 3, "advantage": 2.0},
        {"parts": {"exact": 0.0, "style": float("nan")}, "total": None, "response_len": 5},
        {"parts": {"exact": 1.0}, "response_len": 4, "advantage": None},
    ]
    tracker.log({"train/update": 1.0}, distributions(episodes))
    (logged,) = wandb.run.logged
    counts = {key: sum(h.counts) for key, h in logged.items() if key.startswith("histogram/")}
    assert counts == {
        "histogram/exact": 3,
        "histogram/total": 1,
        "histogram/response_len": 3,
        "histogram/advantage": 1,
    }
    edges = logged["histogram/response_len"].edges
    assert (edges[0], edges[-1]) == (3, 5)


def test_numbers_that_differ_by_rounding_alone_have_a_distribution(tmp_path):
    wandb = FakeWandb()
    tracker, _ = start(tmp_path, wandb)
    totals = [0.3, 0.1 + 0.2, 1e300, float("nan")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker.log({"train/update": 1.0}, distributions([{"total": t} for t in totals]))
    (logged,) = wandb.run.logged
    assert sum(logged["histogram/total"].counts) == 2


def test_the_best_of_what_counts_is_shown_beside_the_latest(tmp_path):
    wandb = FakeWandb()
    start(tmp_path, wandb)
    assert wandb.run.best["eval/total/mean"] == "max,last"
    assert wandb.run.best["sft/val_loss"] == "min,last"
    assert ("sft/val_loss", "sft/step") in wandb.run.metrics


@pytest.mark.parametrize(
    ("job_type", "axis"),
    [("dpo", "sft/step"), ("reward-model", "rm/step"), ("train", "train/update")],
)
def test_everything_stands_over_what_the_run_counts(tmp_path, job_type, axis):
    wandb = FakeWandb()
    start(tmp_path, wandb, job_type=job_type)
    assert ("*", axis) in wandb.run.metrics and ("eval/total/mean", axis) in wandb.run.metrics


def test_trouble_becomes_an_alert(tmp_path):
    wandb = FakeWandb()
    tracker, _ = start(tmp_path, wandb)
    tracker.alert("ppo-parity-s1, update 3", "the entropy fell", "warning")
    tracker.alert("x" * 200, "broken", "error")
    assert wandb.run.alerts == [
        ("ppo-parity-s1, update 3", "the entropy fell", "WARN"),
        ("x" * 60, "broken", "ERROR"),
    ]


def test_a_policy_is_sent_with_what_it_came_from(tmp_path):
    wandb = FakeWandb()
    tracker, _ = start(tmp_path, wandb)
    tracker.log_policy(tmp_path, "ppo parity/s1-policy", {"policy_hash": "ab", "machine": Path()})
    (artifact,) = wandb.run.artifacts
    assert (artifact.name, artifact.type) == ("ppo-parity-s1-policy", "model")
    assert artifact.metadata == {"policy_hash": "ab", "machine": "."}
    assert artifact.folders == [str(tmp_path)]


def test_the_parent_is_linked_online_alone(tmp_path):
    offline, online = FakeWandb(), FakeWandb(key=True)
    for wandb in (offline, online):
        start(tmp_path, wandb)[0].use_policy("sft-s1-policy")
    assert offline.run.used == []
    assert online.run.used == [("sft-s1-policy:latest", "model")]


def test_a_parent_that_cannot_be_linked_matters_to_nobody(tmp_path):
    wandb = FakeWandb(FakeRun(broken={"use_artifact"}), key=True)
    tracker, _ = start(tmp_path, wandb)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker.use_policy("sft-s1-policy")
        tracker.log({"train/update": 1.0})
    assert wandb.run.logged == [{"train/update": 1.0}]


def test_a_table_is_sent_whole(tmp_path):
    wandb = FakeWandb()
    tracker, _ = start(tmp_path, wandb)
    tracker.log_table("pairs", [{"a": "x", "p": 0.5}, {"a": "y", "p": None}])
    table = wandb.run.logged[0]["pairs"]
    assert table.columns == ["a", "p"]
    assert table.data == [("x", 0.5), ("y", None)]


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("failed", 1), ("interrupted", 75)])
def test_the_end_is_told(tmp_path, status, code):
    wandb = FakeWandb()
    tracker, _ = start(tmp_path, wandb)
    tracker.finish(
        status, {"eval/total/mean": 0.5, "eval/total/ci_low": float("nan"), "ids": ["a"]}
    )
    tracker.log({"train/update": 9.0})  # after the end: nothing
    assert wandb.run.summary == {"status": status, "final/eval/total/mean": 0.5}
    assert wandb.run.exit_code == code
    assert wandb.run.logged == []
