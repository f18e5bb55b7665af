"""Rewards cost little to import and stay out of the way of the heavy libraries."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "trl", "datasets", "sklearn", "scipy")


METRICS = ("sacrebleu", "rouge_score", "nltk", "rapidfuzz", "jsonschema", "py3langid", "regex")


def modules_after(code: str, watched: tuple[str, ...] = HEAVY) -> set[str]:
    script = f"import sys\n{code}\nprint(*[m for m in {watched} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_text_rewards_import_no_heavy_library():
    code = (
        "import instructrec.rewards\n"
        "from instructrec.rewards import *\n"
        "rewards = make_rewards({'exact_match': 1, 'bleu': 0.5})\n"
        "batch = rewards.score(['p'], ['a'], {'reference': ['a']})\n"
        "assert batch.total.tolist() == [1.5]"
    )
    assert modules_after(code) == set()


def test_text_rewards_import_their_libraries_when_they_score(root):
    modules = [f"instructrec.rewards.{path.stem}" for path in (root / "rewards").glob("[a-z]*.py")]
    assert "instructrec.rewards.overlap" in modules
    code = f"import {', '.join(modules)}"
    assert modules_after(code, METRICS) == set()
    code = "from instructrec.rewards import make_reward\nmake_reward('bleu')(['p'], ['a'], "
    assert modules_after(code + "reference=['a'])", METRICS) >= {"sacrebleu"}


def test_a_learned_reward_imports_nothing_before_it_scores(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    code = (
        "from instructrec.rewards import make_rewards, list_rewards, reward_info\n"
        "assert 'learned' in list_rewards() and reward_info('learned').format == 'chat'\n"
        f"make_rewards({{'learned': {{'options': {{'path': {str(tmp_path)!r}}}}}}})"
    )
    assert modules_after(code) == set()


def test_the_package_itself_imports_none_of_its_modules():
    script = (
        "import sys, instructrec.rewards\n"
        "print(*[m for m in sys.modules if m.startswith('instructrec.rewards.')])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_every_public_name_exists():
    import instructrec.rewards as rewards

    for name in rewards.__all__:
        assert getattr(rewards, name) is not None
