"""Evaluation of several tries: what a row holds, what is measured, and what is not continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.errors import ConfigError, DataError, PolicyError
from instructrec.experiments.config import EvaluateConfig
from instructrec.experiments.evaluate_policy import run_evaluation
from instructrec.experiments.evaluation import Evaluation, evaluate, load_evaluation
from instructrec.experiments.jsonl import read_json, write_json
from instructrec.experiments.playing import SINGLE_ANSWERS, Episodes
from instructrec.experiments.runfolder import RunFolder
from instructrec.metrics import lookup
from instructrec.policies.base import Responses, StopReason
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.policies.scripted import ConstantPolicy, OraclePolicy
from instructrec.rewards import make_rewards

GREEDY = Sampling(max_new_tokens=4, temperature=0.0)
SAMPLED = Sampling(max_new_tokens=4, temperature=1.0)
THREE = Episodes("refine", 3)


class Corrects:
    """Says "even" first, and the other word once it is told that this was wrong."""

    name = "corrects"

    def __init__(self, fail_at: int | None = None) -> None:
        self.asked: list[Any] = []
        self.fail_at = fail_at

    def respond(self, prompts: Any, columns: Any = None, sampling: Any = None) -> Responses:
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append(list(prompts))
        assert len(columns["reference"]) == len(prompts)
        return Responses(["even" if isinstance(p, str) else "odd" for p in prompts])


def length(completions: list[str], **columns: Any) -> list[float]:
    return [len(text) / 8 for text in completions]


def fails_on_odd(completions: list[str], **columns: Any) -> list[float]:
    if "odd" in completions:
        raise ValueError("odd")
    return [0.0] * len(completions)


def run(
    policy: Any,
    episodes: Episodes = THREE,
    *,
    reward: Any = "exact_match",
    limit: int = 10,
    **options: Any,
) -> Evaluation:
    options = {"sampling": GREEDY, **options}
    task, rewards = make_task("parity", split="test"), make_rewards(reward)
    return evaluate(policy, task, rewards, limit=limit, episodes=episodes, **options)


def test_a_row_holds_the_whole_episode() -> None:
    policy = Corrects()
    evaluation = run(policy)
    single = run(Corrects(), SINGLE_ANSWERS)
    missed = [i for i, row in enumerate(single.rows) if row["total"] == 0.0]
    assert 0 < len(missed) < 10
    assert [row["num_turns"] for row in evaluation.rows] == [
        2 if i in missed else 1 for i in range(10)
    ]
    for i, (row, before) in enumerate(zip(evaluation.rows, single.rows, strict=True)):
        assert row["prompt"] == before["prompt"] and row["total"] == 1.0
        if i not in missed:  # one answer was enough
            assert row == before | {"num_turns": 1, "unfinished": False}
    row = evaluation.rows[missed[0]]
    said = "Your answer was: even\nIts reward is 0.00 of 1.00. Try again."
    assert row["response"] == "odd" and row["parts"] == {"exact_match": 1.0}
    assert row["turns"] == [
        {
            "response": response,
            "reward": reward,
            "stop_reason": None,
            "response_len": None,
            "message": message,
        }
        for response, reward, message in [("even", 0.0, said), ("odd", 1.0, None)]
    ]
    conversation = [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": "even"},
        {"role": "user", "content": said},
    ]
    assert policy.asked[1][0] == conversation


def test_the_metrics_show_what_trying_again_adds() -> None:
    metrics = run(Corrects()).metrics()
    first = run(Corrects(), SINGLE_ANSWERS).metrics()
    assert metrics["eval/first_turn"] == first["eval/total/mean"] < 1.0
    assert metrics["eval/total/mean"] == metrics["eval/exact_match/mean"] == 1.0
    assert metrics["eval/turns"] == 2.0 - first["eval/total/mean"]
    assert metrics["eval/unfinished_frac"] == 0.0
    assert not {"eval/first_turn", "eval/turns", "eval/unfinished_frac"} & first.keys()
    for key in metrics:
        lookup(key)


def test_the_turn_limit_ends_an_episode_and_the_oracle_needs_one_try() -> None:
    wrong = run(ConstantPolicy("neither"))
    assert [len(row["turns"]) for row in wrong.rows] == [3] * 10
    assert [turn["message"] is None for turn in wrong.rows[0]["turns"]] == [False, False, True]
    assert wrong.metrics()["eval/total/mean"] == 0.0
    oracle = run(OraclePolicy())
    assert oracle.metrics()["eval/turns"] == 1.0
    assert all("turns" not in row for row in oracle.rows)


def test_an_answer_that_gets_worse_ends_at_its_own_reward() -> None:
    class Shrinks(ConstantPolicy):
        def respond(self, prompts: Any, columns: Any = None, sampling: Any = None) -> Responses:
            sizes = [4 if isinstance(p, str) else (7 - len(p)) // 2 for p in prompts]
            return Responses(["a" * size for size in sizes])

    evaluation = run(Shrinks(), reward=length)
    assert [row["total"] for row in evaluation.rows] == [0.125] * 10
    assert [turn["reward"] for turn in evaluation.rows[0]["turns"]] == [0.5, 0.25, 0.125]
    assert evaluation.metrics()["eval/first_turn"] == 0.5


def test_a_failed_reward_in_a_later_turn_is_no_score() -> None:
    evaluation = run(Corrects(), reward=fails_on_odd)
    assert [row["total"] for row in evaluation.rows] == [None] * 10
    assert [row["turns"][-1]["reward"] for row in evaluation.rows] == [None] * 10
    metrics = evaluation.metrics()
    assert metrics["eval/fails_on_odd/error_frac"] == 1.0
    assert "eval/first_turn" not in metrics and "eval/total/mean" not in metrics


def test_several_samples_stand_together_and_rows_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    whole = run(Corrects(), samples=2, sampling=SAMPLED)
    assert [row["sample"] for row in whole.rows] == [0, 1] * 10
    assert whole.metrics()["eval/pass_at_1"] == 1.0
    dry, out = Corrects(), tmp_path / "rows.jsonl"
    assert run(dry, samples=2, sampling=SAMPLED, batch_size=4).rows == whole.rows
    first = [isinstance(prompts[0], str) for prompts in dry.asked]
    last_retry = max(i for i, is_first in enumerate(first) if not is_first)
    with pytest.raises(KeyboardInterrupt):
        run(Corrects(last_retry), samples=2, sampling=SAMPLED, batch_size=4, out=out)
    kept = sum(first[:last_retry]) - 1  # whole batches before that retry
    assert kept > 0 and len(out.read_text().splitlines()) == 4 * kept
    policy = Corrects()
    again = run(policy, samples=2, sampling=SAMPLED, batch_size=4, out=out)
    assert policy.asked == dry.asked[last_retry - 1 :]
    assert again.rows == whole.rows == load_evaluation(out).rows
    assert load_evaluation(out).metrics() == again.metrics() == whole.metrics()


def thanks(messages: list[dict[str, str]], columns: dict[str, Any]) -> str | None:
    return None if messages[-1]["content"] == "odd" else "Think again."


def test_a_conversation_is_evaluated_with_its_user() -> None:
    chat = Episodes("chat", 2, {"user": thanks})
    policy = Corrects()
    evaluation = run(policy, chat)
    row = next(row for row in evaluation.rows if row["num_turns"] == 2)
    assert [turn["message"] for turn in row["turns"]] == ["Think again.", None]
    assert [m["content"] for m in policy.asked[1][0]] == [row["prompt"], "even", "Think again."]
    assert evaluation.metrics()["eval/turns"] == 2.0
    assert not any(row["unfinished"] for row in evaluation.rows)
    cut = run(ConstantPolicy("even"), chat)
    assert all(row["unfinished"] and row["num_turns"] == 2 for row in cut.rows)
    labels = {chat.label, Episodes("chat", 2, {"user": "then"}).label, Episodes("chat", 2).label}
    assert len(labels) == 3 and all(label.startswith("chat2") for label in labels)


@pytest.mark.parametrize("other", [SINGLE_ANSWERS, Episodes("refine", 2)])
def test_episodes_of_another_kind_are_not_continued(tmp_path: Path, other: Episodes) -> None:
    out = tmp_path / "rows.jsonl"
    run(Corrects(), out=out)
    with pytest.raises(DataError, match=r"another evaluation \(episodes: .*refine.*max_turns.: 3"):
        run(Corrects(), other, out=out)


def test_a_file_from_before_there_were_turns_is_one_of_single_answers(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    first = run(Corrects(), SINGLE_ANSWERS, out=out)
    header = read_json(out.with_suffix(".json"))
    assert header.pop("episodes") == {"env": "instruction"}
    write_json(out.with_suffix(".json"), header)
    assert load_evaluation(out).metrics() == first.metrics()
    policy = Corrects()
    assert run(policy, SINGLE_ANSWERS, out=out).rows == first.rows and policy.asked == []
    with pytest.raises(DataError, match="episodes"):
        run(Corrects(), THREE, out=out)


def tiny() -> Any:
    return load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"))


def test_a_language_model_goes_on_behind_its_own_tokens() -> None:
    policy = tiny()
    row = run(policy, limit=1).rows[0]
    assert [turn["response_len"] for turn in row["turns"]] == [4, 4, 4]
    assert row["response_len"] == 12 and row["logprob"] < 0
    metrics = run(tiny(), sampling=SAMPLED).metrics()
    assert 0 < metrics["eval/entropy"] < 10 and metrics["eval/turns"] == 3.0


def test_an_episode_that_outgrows_the_window_ends_unfinished(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": "x" * (460 if i % 2 else 5), "reference": "a"} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = make_task(str(path), split="all")
    reward = make_rewards("exact_match")
    evaluation = evaluate(tiny(), task, reward, sampling=GREEDY, episodes=THREE)
    assert [row["unfinished"] for row in evaluation.rows] == [False, True, False, True]
    assert [row["num_turns"] for row in evaluation.rows] == [3, 1, 3, 1]
    assert [row["stop_reason"] for row in evaluation.rows] == [StopReason.LENGTH] * 4
    assert evaluation.metrics()["eval/unfinished_frac"] == 0.5


def test_too_few_answers_in_a_later_turn_are_refused() -> None:
    class Tires(Corrects):
        def respond(self, prompts: Any, columns: Any = None, sampling: Any = None) -> Responses:
            texts = super().respond(prompts, columns, sampling).texts
            return Responses(texts if isinstance(prompts[0], str) else texts[1:])

    with pytest.raises(PolicyError, match=r"responses to \d+ prompts"):
        run(Tires())


def test_the_command_takes_the_environment_as_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = EvaluateConfig(task="parity", env="refine", max_turns=2, limit=5)
    evaluation = run_evaluation("empty", config)
    assert evaluation.header["episodes"] == {"env": "refine", "max_turns": 2}
    assert [row["num_turns"] for row in evaluation.rows] == [2] * 5
    assert evaluation.path is not None and "refine2_greedy_first5" in evaluation.path.name
    folder = RunFolder.open(evaluation.path.parent.parent)
    assert folder.config()["task"]["max_turns"] == 2
    told = capsys.readouterr().out
    assert "up to 2 answers" in told and "first_turn" in told
    # The last answers can be scored anew; a conversation cannot be had with a file.
    replayed = run_evaluation(str(evaluation.path), EvaluateConfig(task="parity", limit=5))
    assert [row["response"] for row in replayed.rows] == [""] * 5
    with pytest.raises(ConfigError, match="last answers"):
        run_evaluation(str(evaluation.path), config)
    with pytest.raises(ConfigError, match="max_turns = 2 given, but with env 'instruction'"):
        run_evaluation("empty", EvaluateConfig(task="parity", max_turns=2))
