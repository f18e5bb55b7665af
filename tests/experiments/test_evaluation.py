from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field

import pytest

from instructrec.envs.tasks.base import Instruction
from instructrec.errors import ConfigError, DataError, PolicyError
from instructrec.experiments.evaluation import evaluate, load_evaluation
from instructrec.metrics import lookup
from instructrec.policies.base import Responses, StopReason
from instructrec.policies.config import Sampling
from instructrec.rewards import make_rewards

GREEDY = Sampling(max_new_tokens=8, temperature=0.0)
SAMPLED = Sampling(max_new_tokens=8, temperature=1.0)


@dataclass
class FakeTask:
    """Instructions "0", "1", ...; two families, three instructions to an item."""

    size: int
    split: str = "test"
    name: str = "digits"
    with_items: bool = True

    @property
    def columns(self):
        return ("reference", "family", "item") if self.with_items else ("reference",)

    @property
    def fingerprint(self):
        return hashlib.sha256(f"{self.name}{self.split}{self.size}".encode()).hexdigest()

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        columns = {"reference": f"answer {i}"}
        if self.with_items:
            columns |= {"family": "odd" if i % 2 else "even", "item": f"word {i // 3}"}
        return Instruction(id=f"digits-{i}", prompt=str(i), columns=columns)


@dataclass
class FakePolicy:
    """Knows the answer to the prompts in ``known``; stops before batch ``fail_at``."""

    known: set[str] = field(default_factory=set)
    tokens: bool = False
    fail_at: int | None = None
    name: str = "fake"
    calls: list[list[str]] = field(default_factory=list)

    def respond(self, prompts, columns=None, sampling=None):
        if self.fail_at == len(self.calls):
            raise KeyboardInterrupt
        self.calls.append(list(prompts))
        texts = [
            reference if str(prompt) in self.known else "no idea"
            for prompt, reference in zip(prompts, columns["reference"], strict=True)
        ]
        if not self.tokens:
            return Responses(texts)
        return Responses(
            texts,
            prompt_ids=[[1]] * len(texts),
            response_ids=[[5, 6, 7, 0]] * len(texts),
            logprobs=[[-1.0, -0.5, -0.25, -0.25]] * len(texts),
            stop_reasons=[StopReason.LENGTH if t == "no idea" else StopReason.EOS for t in texts],
        )


def numbers_only(completions, **columns):
    """Does not apply to "no idea"; fails on the answer to 2."""
    scores = []
    for text in completions:
        if text == "answer 2":
            raise ValueError("two is too many")
        scores.append(None if text == "no idea" else 1.0)
    return scores


def run(policy, size=12, reward="exact_match", sampling=GREEDY, **options):
    return evaluate(policy, FakeTask(size), make_rewards(reward), sampling=sampling, **options)


def test_rows_come_in_the_order_of_the_task_whatever_the_batch_size():
    policy = FakePolicy(known={"1", "4"})
    evaluation = run(policy, batch_size=5)
    assert [len(call) for call in policy.calls] == [5, 5, 2]
    assert [row["id"] for row in evaluation.rows] == [f"digits-{i}" for i in range(12)]
    assert evaluation.rows == run(FakePolicy(known={"1", "4"}), batch_size=100).rows
    assert evaluation.rows[4] == {
        "id": "digits-4",
        "sample": 0,
        "prompt": "4",
        "response": "answer 4",
        "reference": "answer 4",
        "parts": {"exact_match": 1.0},
        "total": 1.0,
        "status": {"exact_match": "scored"},
        "stop_reason": None,
        "response_len": None,
        "logprob": None,
        "item": "word 1",
        "family": "even",
    }


def test_the_mean_and_its_interval_are_clustered_by_item_within_the_family():
    evaluation = run(FakePolicy(known={"0", "1", "2", "9"}))
    metrics = evaluation.metrics()
    assert metrics["eval/exact_match/mean"] == pytest.approx(4 / 12)
    assert metrics["eval/total/mean"] == pytest.approx(4 / 12)
    interval = evaluation.interval("exact_match")
    assert interval.n == 12
    assert interval.n_clusters == 8  # four words in each of two families
    assert metrics["eval/exact_match/ci_low"] == interval.low
    assert 0 <= interval.low < 4 / 12 < interval.high <= 1


def test_without_items_every_instruction_is_its_own_cluster():
    task = FakeTask(60, with_items=False)
    evaluation = evaluate(
        FakePolicy(known={"3"}),
        task,
        make_rewards("exact_match"),
        sampling=SAMPLED,
        samples=2,
    )
    assert evaluation.interval().n == 120
    assert evaluation.interval().n_clusters == 60


def test_families_are_told_apart():
    families = run(FakePolicy(known={"0", "2", "4", "1"})).families()
    assert list(families) == ["even", "odd"]
    assert families["even"]["exact_match"].mean == pytest.approx(3 / 6)
    assert families["odd"]["total"].mean == pytest.approx(1 / 6)


def test_a_response_without_a_score_is_counted_and_never_a_zero():
    evaluation = run(FakePolicy(known={"0", "1", "2"}), reward={"numbers": numbers_only})
    metrics = evaluation.metrics()
    assert metrics["eval/numbers/mean"] == 1.0  # of the answers 0 and 1
    assert metrics["eval/numbers/na_frac"] == pytest.approx(9 / 12)
    assert metrics["eval/numbers/error_frac"] == pytest.approx(1 / 12)
    assert evaluation.rows[2]["total"] is None
    assert "two is too many" in evaluation.rows[2]["errors"]["numbers"]


def test_when_nothing_is_scored_there_is_no_mean():
    metrics = run(FakePolicy(), reward={"numbers": numbers_only}).metrics()
    assert metrics["eval/numbers/na_frac"] == 1.0
    assert "eval/numbers/mean" not in metrics
    assert "eval/total/mean" not in metrics


def test_tokens_give_length_truncation_and_entropy():
    policy = FakePolicy(known={"0", "1", "2"}, tokens=True)
    metrics = run(policy, sampling=SAMPLED).metrics()
    assert metrics["eval/response_len"] == 4.0
    assert metrics["eval/truncated_frac"] == pytest.approx(9 / 12)
    assert metrics["eval/entropy"] == pytest.approx(0.5)
    assert "eval/entropy" not in run(policy, sampling=GREEDY).metrics()


def test_a_policy_without_tokens_has_no_lengths():
    metrics = run(FakePolicy()).metrics()
    assert not {"eval/response_len", "eval/truncated_frac", "eval/entropy"} & set(metrics)


def test_samples_stand_together_and_give_pass_at_k():
    class Guesser(FakePolicy):
        """Is right on the first and third try of instruction 0, and always on 1."""

        def respond(self, prompts, columns=None, sampling=None):
            assert prompts == ["0"] * 4 + ["1"] * 4 + ["2"] * 4
            right = [True, False, True, False] + [True] * 4 + [False] * 4
            pairs = zip(right, columns["reference"], strict=True)
            return Responses([reference if yes else "?" for yes, reference in pairs])

    evaluation = run(Guesser(), size=3, sampling=SAMPLED, samples=4)
    assert [row["sample"] for row in evaluation.rows] == [0, 1, 2, 3] * 3
    metrics = evaluation.metrics()
    assert metrics["eval/pass_at_1"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert metrics["eval/pass_at_2"] == pytest.approx((5 / 6 + 1 + 0) / 3)
    assert metrics["eval/pass_at_4"] == pytest.approx(2 / 3)
    # Full marks or nothing: the best of k is pass@k.
    for k in (2, 4):
        assert metrics[f"eval/best_of_{k}"] == pytest.approx(metrics[f"eval/pass_at_{k}"])
    assert "eval/best_of_1" not in metrics


def test_every_metric_is_a_defined_key_with_a_finite_number():
    policy = FakePolicy(known={"0", "1", "2"}, tokens=True)
    reward = {"exact_match": 1.0, "numbers": numbers_only}
    metrics = run(policy, reward=reward, sampling=SAMPLED, samples=2).metrics()
    assert "eval/pass_at_2" in metrics
    for key, value in metrics.items():
        lookup(key)
        assert math.isfinite(value)


def test_limit_takes_the_first_instructions():
    policy = FakePolicy()
    assert [row["prompt"] for row in run(policy, limit=3).rows] == ["0", "1", "2"]
    assert policy.calls == [["0", "1", "2"]]


def test_progress_is_told_after_every_batch():
    seen = []
    run(FakePolicy(), batch_size=5, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(5, 12), (10, 12), (12, 12)]


def test_an_interrupted_evaluation_continues_where_it_stopped(tmp_path):
    out = tmp_path / "eval" / "digits.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(FakePolicy(known={"1"}, fail_at=2), batch_size=5, out=out)
    assert len(out.read_text().splitlines()) == 10
    with pytest.raises(DataError, match="10 of 12 rows"):
        load_evaluation(out)
    with open(out, "a") as file:
        file.write('{"id": "digits-10", "sam')  # a torn line, as a killed process leaves it
    policy = FakePolicy(known={"1"})
    evaluation = run(policy, batch_size=5, out=out)
    assert policy.calls == [["10", "11"]]
    assert evaluation.rows == run(FakePolicy(known={"1"})).rows
    assert load_evaluation(out).rows == evaluation.rows
    assert load_evaluation(out).metrics() == evaluation.metrics()


def test_a_finished_evaluation_is_not_repeated(tmp_path):
    out = tmp_path / "digits.jsonl"
    first = run(FakePolicy(known={"1"}), out=out)
    again = FakePolicy(known={"1"})
    assert run(again, out=out).rows == first.rows
    assert again.calls == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sampling": SAMPLED}, "sampling"),
        ({"size": 9}, "fingerprint"),
        ({"reward": {"numbers": numbers_only}}, "reward"),
        ({"policy": FakePolicy(name="other")}, "policy"),
    ],
)
def test_rows_of_another_evaluation_are_not_continued(tmp_path, change, named):
    out = tmp_path / "digits.jsonl"
    run(FakePolicy(), out=out)
    before = out.read_bytes()
    with pytest.raises(DataError, match=f"holds another evaluation.*{named}"):
        run(**{"policy": FakePolicy(), "out": out, **change})
    assert out.read_bytes() == before


def test_other_weights_under_the_same_name_are_another_evaluation(tmp_path):
    class Hashed(FakePolicy):
        weights = "a"

        def weights_hash(self):
            return self.weights

    policy = Hashed()
    run(policy, out=tmp_path / "digits.jsonl")
    policy.weights = "b"
    with pytest.raises(DataError, match="weights_hash: 'a' -> 'b'"):
        run(policy, out=tmp_path / "digits.jsonl")


def test_a_row_that_was_changed_is_noticed(tmp_path):
    out = tmp_path / "digits.jsonl"
    run(FakePolicy(), out=out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    rows[3]["prompt"] = "5"
    out.write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    with pytest.raises(DataError, match=r"row 4: expected .*'3'.*found .*'5'"):
        run(FakePolicy(), out=out)


def test_rows_without_their_header_are_refused(tmp_path):
    out = tmp_path / "digits.jsonl"
    out.write_text('{"id": "digits-0"}\n')
    with pytest.raises(DataError, match=r"no digits\.json that says"):
        run(FakePolicy(), out=out)


def test_hostile_text_survives_the_file(tmp_path):
    text = 'a\u2028b\u0085c\r\n\x00 \ud800 \U0001f600 "quoted"\\'

    class Hostile(FakePolicy):
        def respond(self, prompts, columns=None, sampling=None):
            return Responses([text] * len(prompts))

    out = tmp_path / "digits.jsonl"
    run(Hostile(), out=out)
    rows = load_evaluation(out).rows
    assert len(rows) == 12
    assert rows[0]["response"] == text


def test_conversations_are_given_and_kept_whole(tmp_path):
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})

    class Chat(FakeTask):
        def __getitem__(self, i):
            return Instruction(id=f"chat-{i}", prompt=messages, columns={"reference": "x"})

    out = tmp_path / "chat.jsonl"
    task = Chat(3, with_items=False)
    for _ in range(2):  # the second time from the file
        evaluation = evaluate(
            FakePolicy(), task, make_rewards("exact_match"), sampling=GREEDY, out=out
        )
        assert evaluation.rows[0]["prompt"] == [dict(m) for m in messages]


def test_a_missing_column_is_named_before_the_policy_is_asked():
    class Bare(FakeTask):
        columns = ("colour",)

    policy = FakePolicy()
    with pytest.raises(DataError, match="reference"):
        evaluate(policy, Bare(3), make_rewards("exact_match"), sampling=GREEDY)
    assert policy.calls == []


def test_a_policy_that_answers_too_little_is_refused():
    class Lazy(FakePolicy):
        def respond(self, prompts, columns=None, sampling=None):
            return Responses(["x"])

    with pytest.raises(PolicyError, match="1 responses to 12 prompts"):
        run(Lazy())


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="is empty"):
        run(FakePolicy(), size=0)


@pytest.mark.parametrize("option", ["samples", "batch_size", "limit"])
def test_counts_below_one_are_refused(option):
    with pytest.raises(ConfigError, match=f"{option} = 0"):
        run(FakePolicy(), **{option: 0})
