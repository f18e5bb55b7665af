"""A model behind a server: asked in batches, measured like any other, and never trusted."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.errors import ConfigError, PolicyError
from instructrec.experiments.cli import main
from instructrec.experiments.evaluation import evaluate
from instructrec.experiments.jsonl import read_rows
from instructrec.experiments.playing import Episodes
from instructrec.policies.base import StopReason
from instructrec.policies.config import EndpointConfig, Sampling
from instructrec.policies.endpoint import EndpointPolicy
from instructrec.rewards.combine import make_rewards

pytest.importorskip("httpx")

Reply = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]


@contextlib.contextmanager
def serving(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers as a function of the request; yields its address and what was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(request | {"key": self.headers.get("Authorization")})
            status, answer = reply(request)
            body = json.dumps(answer).encode()
            with contextlib.suppress(OSError):  # the other side may have hung up
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Stays silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def says(text: str, reason: str = "stop") -> tuple[int, dict[str, Any]]:
    return 200, {"choices": [{"message": {"content": text}, "finish_reason": reason}]}


def echo(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    text = request["messages"][-1]["content"]
    return says(f" {text.upper()} ", "length" if text == "long" else "stop")


def policy(url: str, system_prompt: str = "", **settings: Any) -> EndpointPolicy:
    config = EndpointConfig(**{"model": "m", "retries": 0} | settings)
    return EndpointPolicy(url, config, system_prompt=system_prompt, seed=5)


def test_answers_come_in_the_order_of_the_prompts_with_why_they_ended() -> None:
    with serving(echo) as (url, asked):
        responses = policy(url, concurrency=3).respond(["a", "long", "\u00e9", "d", "\ud800"])
    assert responses.texts == ["A", "LONG", "\u00c9", "D", "\ud800"]
    assert responses.stop_reasons[1] is StopReason.LENGTH
    assert responses.stop_reasons[0] is responses.stop_reasons[2] is StopReason.EOS
    assert not responses.response_ids and len(asked) == 5


def test_the_request_says_how_to_draw_and_each_answer_has_a_seed_of_its_own() -> None:
    sampling = Sampling(max_new_tokens=7, temperature=0.5, top_p=0.9, stop_strings=("\n",))
    with serving(echo) as (url, asked):
        made = policy(url, length_field="max_completion_tokens")
        made.respond(["a", "b"], None, sampling)
        made.respond(["c"], None, sampling)
    assert sorted(request["seed"] for request in asked) == [5, 6, 7]
    assert all(request["max_completion_tokens"] == 7 for request in asked)
    assert all((r["temperature"], r["top_p"], r["stop"]) == (0.5, 0.9, ["\n"]) for r in asked)
    assert all(request["key"] is None and request["model"] == "m" for request in asked)


def test_conversations_and_the_system_prompt_reach_the_server() -> None:
    own = ({"role": "system", "content": "own"}, {"role": "user", "content": "q"})
    with serving(echo) as (url, asked):
        policy(url, system_prompt="be brief", concurrency=1).respond(["a", own])
    assert [message["content"] for message in asked[0]["messages"]] == ["be brief", "a"]
    assert [message["content"] for message in asked[1]["messages"]] == ["own", "q"]


def test_a_key_comes_from_the_environment_and_stands_in_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-canary")
    with serving(lambda request: says("the key is sk-canary")) as (url, asked):
        texts = policy(url, api_key_env="MY_KEY").respond(["a"]).texts
    assert asked[0]["key"] == "Bearer sk-canary"
    assert texts == ["the key is [key]"]


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (lambda request: (500, {"error": "broken"}), PolicyError, "gave no answer: status 500"),
        (lambda request: (200, {"x": 1}), PolicyError, "expected a chat completion"),
        (lambda request: (401, {}), ConfigError, "refuses a call without key"),
        (lambda request: (404, {}), ConfigError, "no model 'm'"),
    ],
)
def test_what_is_no_answer_is_said(reply: Reply, kind: type[Exception], message: str) -> None:
    with serving(reply) as (url, _), pytest.raises(kind, match=message):
        policy(url).respond(["a", "b"])


def test_what_the_interface_cannot_do_is_refused() -> None:
    made = policy("http://localhost:1/v1")
    with pytest.raises(ConfigError, match="top_k = 5"):
        made.respond(["a"], None, Sampling(top_k=5))
    with pytest.raises(PolicyError, match="conversation without messages"):
        made.respond([()])
    with pytest.raises(ConfigError, match="5 stop strings"):
        made.respond(["a"], None, Sampling(stop_strings=tuple("abcde")))
    with pytest.raises(ConfigError, match=r"Give --endpoint\.model"):
        policy("http://localhost:1/v1", model=None)
    with pytest.raises(ConfigError) as refused:
        policy("http://me:secret@localhost:1/v1", model=None)
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError, match="unencrypted"):
        policy("http://example.org/v1")


def test_an_evaluation_goes_on_behind_the_answers_that_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = 4

    def reply(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return says("odd") if len(asked) <= allowed else (400, {"error": "enough"})

    with serving(reply) as (url, asked):
        command = ["evaluate", url, "--endpoint.model", "m", "--endpoint.retries", "0"]
        command += ["--task", "parity", "--limit", "6", "--batch_size", "2", "--output.dir"]
        command += [str(tmp_path), "--endpoint.concurrency", "1"]
        assert main(command) == PolicyError.exit_code
        assert "enough" in capsys.readouterr().err
        (file,) = tmp_path.glob("*/eval/*.jsonl")
        assert len(read_rows(file)) == 4
        allowed = 99
        assert main(command) == 0
    rows = read_rows(file)
    assert [row["response"] for row in rows] == ["odd"] * 6
    prompts = [request["messages"][-1]["content"] for request in asked]
    assert len(prompts) == 7 and len(set(prompts)) == 6  # the refused one was asked again
    assert [request["seed"] for request in asked] == [0, 1, 2, 3, 4, 4, 5]  # each row its own
    assert "exact_match" in capsys.readouterr().out


def test_seeds_go_on_behind_all_answers_of_the_conversations_that_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"

    def seeds() -> list[int]:
        """What the rest of the evaluation asks for."""
        with serving(lambda request: says("wrong")) as (url, asked):
            made = EndpointPolicy(url, EndpointConfig(model="m", concurrency=1), seed=5)
            made.name = "m"  # the port is another one each time
            evaluate(
                made,
                make_task("parity", split="test", size=20),
                make_rewards({"exact_match": 1.0}),
                sampling=Sampling(),
                batch_size=2,
                limit=4,
                episodes=Episodes("refine", max_turns=3),
                out=file,
            )
        return [request["seed"] for request in asked]

    whole = seeds()
    assert whole == list(range(5, 17))  # four instructions, three tries at each
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    assert seeds() == whole[6:]


def test_settings_of_a_server_need_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "empty", "--endpoint.model", "m", "--task", "parity"]) == 2
    assert "'empty' is no server" in capsys.readouterr().err
