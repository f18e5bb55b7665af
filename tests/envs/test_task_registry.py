"""Finding tasks by name, file and factory, with errors that help."""

import subprocess
import sys

import pytest

from instructrec.envs.tasks.base import (
    Instruction,
    list_tasks,
    make_task,
    register_task,
    render_prompt,
)
from instructrec.errors import ConfigError

FACTORY = """
from instructrec.envs.tasks.base import Instruction

class Echo:
    name, columns, fingerprint = "echo", ("reference",), "echo"
    def __init__(self, *, split="train", word="hi"):
        self.split, self.word = split, word
    def __len__(self):
        return 1
    def __getitem__(self, index):
        return Instruction("echo-0", f"Say {self.word}", {"reference": self.word})

constant = 3
"""


@pytest.fixture
def factory_file(tmp_path):
    path = tmp_path / "my_tasks.py"
    path.write_text(FACTORY)
    return path


def test_every_built_in_task_is_listed():
    assert set(list_tasks()) >= {
        "arithmetic",
        "category",
        "closed_answers",
        "compare_numbers",
        "odd_one_out",
        "parity",
        "swap_words",
    }


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("paritty", {}, "unknown task 'paritty'. Did you mean 'parity'"),
        ("parity", {"split": "tets"}, "unknown split 'tets'. Did you mean 'test'"),
        ("parity", {"split": "all"}, "unknown split 'all'"),
        ("parity", {"sizes": 3}, "no option 'sizes'. Did you mean 'size'"),
        (3, {}, "named by a string"),
        ("no_such_module:task", {}, "no_such_module"),
        ("no_such_file.py:task", {}, "no_such_file.py"),
    ],
)
def test_what_cannot_be_found_is_refused_with_a_hint(spec, options, message):
    with pytest.raises(ConfigError) as caught:
        make_task(spec, **options)
    assert message in str(caught.value)


def test_a_users_factory_is_found_in_a_file(factory_file):
    task = make_task(f"{factory_file}:Echo", split="test", word="hello")
    assert (task.split, task[0].prompt) == ("test", "Say hello")


@pytest.mark.parametrize(
    ("attribute", "message"), [("Ecko", "Did you mean 'Echo'"), ("constant", "is a int")]
)
def test_a_wrong_attribute_of_a_file_is_refused(factory_file, attribute, message):
    with pytest.raises(ConfigError, match=message):
        make_task(f"{factory_file}:{attribute}")


def test_an_option_that_a_factory_does_not_take_is_refused(factory_file):
    with pytest.raises(ConfigError, match="Did you mean 'word'"):
        make_task(f"{factory_file}:Echo", words="x")


def test_a_registered_factory_is_found_and_its_name_cannot_be_taken_twice():
    @register_task("capitals_of_a_test")
    def capitals(*, split="train"):
        return make_task("parity", split=split)

    assert make_task("capitals_of_a_test").name == "parity"
    assert "capitals_of_a_test" in list_tasks()

    def other(*, split="train"):
        return make_task("category", split=split)

    with pytest.raises(ConfigError, match="exists already"):
        register_task("capitals_of_a_test")(other)
    register_task("capitals_of_a_test", override=True)(other)
    assert make_task("capitals_of_a_test").name == "category"


def test_a_built_in_name_is_taken_even_before_it_is_used():
    script = (
        "from instructrec.envs.tasks.base import make_task, register_task\n"
        "from instructrec.errors import ConfigError\n"
        "try:\n"
        "    register_task('parity')(lambda split: None)\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "exists already" in result.stdout, result.stderr


@pytest.mark.parametrize("name", ["a:b", "a.jsonl", "", "dir/task"])
def test_a_name_that_looks_like_a_path_is_refused(name):
    with pytest.raises(ConfigError, match="letters, digits"):
        register_task(name)


def test_a_conversation_is_rendered_as_lines_and_text_as_it_is():
    conversation = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    assert render_prompt(conversation) == "system: Be brief.\nuser: Hi"
    assert render_prompt("Hi") == "Hi"
    assert Instruction("a", "b").columns == {}


def test_importing_the_environments_imports_no_torch():
    script = (
        "import sys, instructrec.envs, instructrec.envs.vector, instructrec.envs.tasks.dataset\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'pandas', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
