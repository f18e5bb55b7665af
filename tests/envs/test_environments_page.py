"""The Python on the documentation page runs as it stands."""

import re

from instructrec.envs import make_task


def test_the_examples_of_the_page_run(root):
    text = (root / "docs" / "environments.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        namespace = {}
        exec(block, namespace)
        if "info" in namespace:
            assert namespace["info"]["reward_parts"].keys() == {"exact_match", "bleu"}


def test_the_data_rows_of_the_page_load(root, tmp_path):
    text = (root / "docs" / "environments.md").read_text(encoding="utf-8")
    rows = re.search(r"```json\n(.*?)```", text, flags=re.DOTALL)[1]
    path = tmp_path / "rows.jsonl"
    path.write_text(rows, encoding="utf-8")
    assert len(make_task(str(path), split="all")) == 2
