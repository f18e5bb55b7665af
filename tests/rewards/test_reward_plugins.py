"""Rewards of installed packages: found by name, imported late, never in silent conflict."""

from __future__ import annotations

import sys

import pytest

from instructrec.errors import ConfigError
from instructrec.rewards import (
    list_rewards,
    make_reward,
    make_rewards,
    plugins,
    register_reward,
    reward_info,
)

MODULE = """
from instructrec.rewards import register_reward

@register_reward("{prefix}_decorated", range=(0, 1))
def decorated(completions, **columns):
    return [1.0] * len(completions)

def plain(completions, *, value: float = 0.5, **columns):
    return [value] * len(completions)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package with a module of rewards and the given entry points."""

    def put(package, entries):
        module = package.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(MODULE.format(prefix=module))
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {target}" for name, target in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[instructrec.rewards]", *lines]))
        plugins._found.cache_clear()
        return module

    monkeypatch.syspath_prepend(str(tmp_path))
    yield put
    plugins._found.cache_clear()


def test_a_reward_of_a_package_is_found_by_its_name_and_imported_when_it_is_needed(install):
    module = install("plug-late", {"plug_plain": "plug_late:plain"})
    assert "plug_plain" in list_rewards()
    assert module not in sys.modules
    assert make_reward("plug_plain", value=0.25)(["p"], ["a"]) == [0.25]
    combined = make_rewards({"plug_plain": 2.0})
    assert combined.spec == {"plug_plain": {"use": "plug_late:plain", "weight": 2.0}}


def test_what_its_decorator_says_counts(install):
    install("plug-deco", {"plug_deco_decorated": "plug_deco:decorated"})
    for _ in range(2):
        assert reward_info("plug_deco_decorated").range == (0.0, 1.0)


def test_two_packages_with_one_name_are_both_named(install):
    install("plug-one", {"plug_twice": "plug_one:plain"})
    install("plug-two", {"plug_twice": "plug_two:plain"})
    with pytest.raises(ConfigError, match=r"plug_\w+:plain \(package plug-\w+\) and plug_\w+:"):
        make_reward("plug_twice")
    assert make_reward("plug_two:plain")(["p"], ["a"]) == [0.5]


def test_a_package_does_not_replace_a_built_in_or_your_own_reward(install):
    install("plug-greedy", {"bleu": "plug_greedy:plain", "plug_mine": "plug_greedy:plain"})

    @register_reward("plug_mine")
    def mine(completions, **columns):
        return [0.0]

    with pytest.raises(ConfigError, match=r"plug-greedy brings .*'bleu'.*package instructrec has"):
        make_reward("bleu")
    with pytest.raises(ConfigError, match=r"plug-greedy brings .*'plug_mine'.*this process has"):
        make_reward("plug_mine")
    register_reward("plug_mine", override=True)(mine)
    assert make_reward("plug_mine")(["p"], ["a"]) == [0.0]


def test_a_package_that_does_not_import_is_named(install):
    install("plug-broken", {"plug_broken": "plug_broken:missing"})
    with pytest.raises(ConfigError, match=r"plug-broken brings .*has no 'missing'"):
        make_reward("plug_broken")
