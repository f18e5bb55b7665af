"""The Python on the documentation page runs as it stands."""

import re

from instructrec.envs import make_task
from instructrec.envs.refine import TRY_AGAIN


def test_the_examples_of_the_page_run(root):
    text = (root / "docs" / "environments.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    first, turns, own = ({} for _ in blocks)
    for block, namespace in zip(blocks, (first, turns, own), strict=True):
        exec(block, namespace)
    assert first["info"]["reward_parts"].keys() == {"exact_match", "bleu"}
    assert turns["observations"] == ("Are you sure?", "Are you sure?")
    assert not turns["terminated"].any()
    assert turns["envs"].step(["even", "odd"])[2].all()


def test_the_message_of_the_page_is_the_one_that_is_said(root):
    text = (root / "docs" / "environments.md").read_text(encoding="utf-8")
    assert TRY_AGAIN in text


def test_the_data_rows_of_the_page_load(root, tmp_path):
    text = (root / "docs" / "environments.md").read_text(encoding="utf-8")
    rows = re.search(r"```json\n(.*?)```", text, flags=re.DOTALL)[1]
    path = tmp_path / "rows.jsonl"
    path.write_text(rows, encoding="utf-8")
    assert len(make_task(str(path), split="all")) == 2
