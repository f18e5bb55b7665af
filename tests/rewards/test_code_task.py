"""The task of one-line functions and the reward that judges it fit together."""

from __future__ import annotations

from instructrec.envs.tasks.base import iterate, make_task
from instructrec.rewards import make_rewards


def test_the_reference_scores_one_and_a_near_miss_nothing() -> None:
    rewards = make_rewards({"code": {"use": "code_execution", "options": {"run_model_code": True}}})
    items = [
        item
        for level in (1, 2, 3)
        for item in iterate(make_task("one_line_functions", level=level, size=3))
    ]
    columns = {name: [item.columns[name] for item in items] for name in ("cases", "function")}
    right = [item.columns["reference"] for item in items]
    fenced = [f"Here it is:\n```python\n{code}\n```\nDone." for code in right]
    wrong = [code.replace("return ", "return not ") for code in right]
    for responses, score in ((right, 1.0), (fenced, 1.0), (wrong, 0.0)):
        batch = rewards.score([item.prompt for item in items], responses, columns)
        assert batch.total.tolist() == [score] * len(items)
