"""The Python on the documentation page runs as it stands."""

import re

import yaml

from instructrec.envs import ChatEnv, make_task
from instructrec.envs.refine import TRY_AGAIN


def test_the_examples_of_the_page_run(root):
    text = (root / "docs" / "environments.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 5
    first, turns, talk, tools, own = ({} for _ in blocks)
    for block, namespace in zip(blocks, (first, turns, talk, tools, own), strict=True):
        exec(block, namespace)
    assert first["info"]["reward_parts"].keys() == {"exact_match", "bleu"}
    assert turns["observations"] == ("Are you sure?", "Are you sure?")
    assert not turns["terminated"].any()
    assert turns["envs"].step(["even", "odd"])[2].all()
    assert talk["conversation"][-1] == {"role": "user", "content": "Why?"}
    assert talk["reward"] in (0.0, 1.0) and not talk["terminated"]
    assert talk["chat"].step("because of its last digit")[1] == 0.5
    assert talk["chat"].step("no")[1:4] == (0.0, True, False)
    assert tools["message"] == "Result: 120\nResult: 408"
    assert tools["info"]["reward_parts"]["frugal"] == 1 / 3 and tools["terminated"]
    assert (tools["info"]["num_calls"], tools["info"]["num_errors"]) == (3, 1)


def test_the_rewards_of_a_conversation_on_the_page_can_be_made(root, tmp_path, monkeypatch):
    text = (root / "docs" / "environments.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(
        "def brevity(completions, **columns):\n    return [1 / (1 + len(c)) for c in completions]\n"
    )
    (block,) = re.findall(r"```yaml\n(rewards:.*?)```", text, flags=re.DOTALL)
    env = ChatEnv("parity", reward=yaml.safe_load(block)["rewards"], turn_reward="each")
    env.reset(seed=0)
    assert env.step("")[4]["reward_parts"] == {"brevity": 1.0}
    assert "end.exact_match" in env.step("odd")[4]["reward_parts"]


def test_the_message_of_the_page_is_the_one_that_is_said(root):
    text = (root / "docs" / "environments.md").read_text(encoding="utf-8")
    assert TRY_AGAIN in text


def test_the_data_rows_of_the_page_load(root, tmp_path):
    text = (root / "docs" / "environments.md").read_text(encoding="utf-8")
    rows = re.search(r"```json\n(.*?)```", text, flags=re.DOTALL)[1]
    path = tmp_path / "rows.jsonl"
    path.write_text(rows, encoding="utf-8")
    assert len(make_task(str(path), split="all")) == 2
