"""Constraints: known answers, IFEval's own program as oracle, both column formats, hostile text."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from instructrec.errors import ConfigError, DataError
from instructrec.rewards import make_reward, make_rewards
from instructrec.rewards.constraint_checks import (
    bound_check,
    list_constraints,
    register_constraint,
)
from instructrec.rewards.constraints import check_constraints, constraints, loose_forms
from instructrec.rewards.language import detected_language
from instructrec.rewards.sentences import num_sentences

IFEVAL = 25
ENGLISH = "the weather is nice today and we would like to go for a walk in the park"
KNOWN = [
    ("existence", {"keywords": ["cat", "Dog"]}, "The CAT and dogs.", "The cat."),
    ("existence", {"keywords": ["a.b"]}, "a.b", "axb"),
    ("frequency", {"keyword": "ha", "frequency": 3, "relation": "at least"}, "Hahaha", "haha"),
    ("frequency", {"keyword": "ha", "frequency": 2, "relation": "less than"}, "ha", "haha"),
    ("forbidden_words", {"forbidden_words": ["sun", "moon"]}, "sunny day", "The Sun."),
    ("forbidden_words", {"forbidden_words": ["sun", "c++"]}, "c+ code", "I like C++ code"),
    (
        "letter_frequency",
        {"letter": "E", "let_frequency": 2, "let_relation": "at least"},
        "eE",
        "e",
    ),
    (
        "letter_frequency",
        {"letter": "#", "let_frequency": 1, "let_relation": "less than"},
        "a",
        "#",
    ),
    ("number_words", {"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    ("number_words", {"num_words": 2, "relation": "exactly"}, "one, two!", "one"),
    ("number_words", {"num_words": 2, "relation": "at most"}, "one two", "one two three"),
    ("number_words", {"num_words": 2, "relation": "more than"}, "a b c", "a b"),
    ("number_sentences", {"num_sentences": 2}, "I came. I saw.", "Dr. Who came at 3.14 p.m. today"),
    ("number_characters", {"num_characters": 4}, " four ", "fives"),
    ("number_lines", {"num_lines": 2}, "a\n\nb\n", "a\nb\nc"),
    ("number_paragraphs", {"num_paragraphs": 2}, "one ***\n two\n***", "one\n\ntwo"),
    ("number_paragraphs", {"num_paragraphs": 2}, "a***b", "a *** *** b"),
    (
        "nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Hello"},
        'x\n\n"Hello," he said.',
        "hello\n\nx",
    ),
    ("number_placeholders", {"num_placeholders": 2}, "[name] at [address]", "[name] [address"),
    ("postscript", {"postscript_marker": "P.S."}, "Bye.\np. s. more", "Bye. PS more"),
    ("postscript", {"postscript_marker": "P.P.S"}, "x P.P.S. y", "x P.S. y"),
    ("postscript", {"postscript_marker": "NB:"}, "x nb: y", "x"),
    ("number_bullet_lists", {"num_bullets": 2}, "Points:\n* a\n  - b", "* a\n** b **"),
    ("constrained_response", {}, "My answer is no.", "My answer: no"),
    ("constrained_response", {"options": ["red", "blue"]}, "blue", "green"),
    ("number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and ** **"),
    (
        "multiple_sections",
        {"section_spliter": "Day", "num_sections": 2},
        "Day 1\nx\nDay2\ny",
        "day 1 Day one",
    ),
    ("json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("json_format", {}, "3", "[" * 100_000),
    ("title", {}, "<<poem>>\ntext", "<< >> <<poem>"),
    ("title", {}, "a <<b>> c", "<<>>"),
    ("two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("two_responses", {}, "******a******b", "a******b******c"),
    ("repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi!", "Hi! Say hi."),
    ("repeat_prompt", {}, "THE PROMPT: answer", "answer"),
    ("start_checker", {"start_phrase": "Dear"}, ' "dear Sir', "Sir, dear"),
    ("end_checker", {"end_phrase": "The end."}, 'So. THE END."', "The end. Not."),
    ("quotation", {}, ' "all of it" ', '"'),
    ("capital_word_frequency", {"capital_frequency": 2}, "A WELL-KNOWN one", "An old ONE"),
    (
        "capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "U.S. OK",
        "The U.S.A. is big.",
    ),
    ("english_capital", {}, "THIS IS A SENTENCE THAT IS WRITTEN IN ENGLISH", ENGLISH),
    ("english_lowercase", {}, ENGLISH, ENGLISH.capitalize()),
    ("no_comma", {}, "a; b", "a, b"),
    ("response_language", {"language": "de"}, "Das Wetter ist heute wirklich schön.", ENGLISH),
    ("response_language", {"language": "en"}, ENGLISH, "12345 ***"),
]


@pytest.mark.parametrize(("name", "settings", "follows", "does_not"), KNOWN)
def test_a_constraint_gives_the_known_answers(name, settings, follows, does_not):
    check = bound_check(name, settings, "The prompt")
    assert check(follows) is True
    assert check(does_not) is False


def test_every_constraint_has_a_known_answer():
    assert {name.partition(":")[2] for name in list_constraints()} == {row[0] for row in KNOWN}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("No end", 1),
        ("One. Two! Three? Four…", 4),
        ('He said "Go." Then he left.', 2),
        ("Mr. J. Smith paid 3.50 at 5 p.m. in the U.S. to Dr. No.", 1),
        ("It closed at 5 p.m. We left.", 2),
        ("Wait... what? Yes", 2),
        ("So do I. And you?", 2),
        ("Fruits:\n1. apples\n2. pears", 3),
        ("it is. they are. we were.", 3),
        ("今日は良い。明日は\uff1fはい", 3),
        ("**Bold end.** Next.", 2),
    ],
)
def test_sentences_are_counted_by_rule(text, count):
    assert num_sentences(text) == count


def row(*pairs):
    return [{"id": name, "kwargs": settings} for name, settings in pairs]


SHORT = ("number_words", {"num_words": 3, "relation": "less than"})
NO_COMMA = ("punctuation:no_comma", {})


def test_the_score_is_the_share_or_all():
    rows = [row(SHORT, NO_COMMA)] * 3
    texts = ["one two", "one, two", "one, two, three"]
    assert constraints(["p"] * 3, texts, rows) == [1.0, 0.5, 0.0]
    assert constraints(["p"] * 3, texts, rows, score="all") == [1.0, 0.0, 0.0]
    assert constraints(["p"], [""], rows[:1]) == [0.0]
    assert constraints(["p", "p"], ["a", "a"], [[], None]) == [None, None]


def test_both_column_formats_and_json_text_score_alike():
    given = row(SHORT, NO_COMMA)
    names = [SHORT[0], NO_COMMA[0]]
    # IFEval's tables hold every setting in every row, None where it does not belong.
    settings = [{**SHORT[1], "num_words": 3.0, "keywords": None}, {"num_words": None}]
    reward = make_reward("constraints")
    texts = ["one, two"]
    assert reward(["p"], texts, constraints=[given]) == [0.5]
    assert reward(["p"], texts, constraints=[json.dumps(given)]) == [0.5]
    assert reward(["p"], texts, instruction_id_list=[names], kwargs=[settings]) == [0.5]
    assert reward(["p"], texts, instruction_id_list=[["no_comma"]]) == [0.0]
    assert reward(["p"], texts, constraints=[["no_comma"]]) == [0.0]
    renamed = make_reward("constraints", constraints_column="rules")
    assert renamed(["p"], texts, rules=[given]) == [0.5]


def test_loose_lets_an_introduction_and_asterisks_pass():
    text = 'Sure!\n*{"a": 1}*\nBye'
    rule = [row(("json_format", {}))]
    assert constraints(["p"], [text], rule) == [0.0]
    assert constraints(["p"], [text], rule, mode="loose") == [1.0]
    assert len(loose_forms(text)) == 8 and loose_forms(text)[0] == text


def test_parts_show_one_constraint_or_group_each():
    rewards = make_rewards(
        {
            "constraints": 1.0,
            "short": {"use": "constraints", "weight": 0, "options": {"only": "number_words"}},
            "marks": {"use": "constraints", "weight": 0, "options": {"only": "punctuation"}},
        }
    )
    rows = [row(SHORT, NO_COMMA), row(NO_COMMA)]
    batch = rewards.score(["p"] * 2, ["one, two", "one"], {"constraints": rows})
    assert batch.total.tolist() == [0.5, 1.0]
    assert batch.parts["short"][0] == 1.0 and batch.status["short"][1] == "not_applicable"
    assert batch.parts["marks"].tolist() == [0.0, 1.0]
    assert check_constraints("one, two", [SHORT, NO_COMMA]) == [
        ("length_constraints:number_words", True),
        ("punctuation:no_comma", False),
    ]


def test_a_trainer_that_logs_gets_the_share_of_each_constraint():
    logged = {}
    rows = [row(SHORT, NO_COMMA), row(NO_COMMA)]
    constraints(["p"] * 2, ["one, two", "one"], rows, log_metric=logged.__setitem__)
    assert logged == {"constraints/number_words": 1.0, "constraints/no_comma": 0.5}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("no_coma", {}), r"unknown constraint 'no_coma'. Did you mean 'no_comma'"),
        (("number_words", {}), r"lacks the setting 'num_words'"),
        (("number_words", {"num_word": 3}), r"has no option 'num_word'. Did you mean 'num_words'"),
        (("number_words", {"num_words": "3"}), r"expected int"),
        (("number_words", {"num_words": 3, "relation": "over"}), r"expected one of less than"),
        (("existence", {"keywords": "cat"}), r"expected a list of texts"),
        (("existence", {"keywords": [" "]}), r"expected a list of texts that are not blank"),
        (("end_checker", {"end_phrase": ""}), r"expected a text that is not blank"),
        (("letter_frequency", {"letter": "ab", "let_frequency": 1}), r"expected one character"),
    ],
)
def test_a_row_that_is_wrong_is_an_error_of_the_data(entry, message):
    with pytest.raises(DataError, match=message):
        constraints(["p"], ["some text"], [row(entry)])


def test_wrong_columns_and_options_are_named():
    with pytest.raises(DataError, match=r"needs the column 'constraints'.*instruction_id_list"):
        make_reward("constraints")(["p"], ["c"], reference=["r"])
    for cell in ("no json", 3, [{"kwargs": {}}], [3]):
        with pytest.raises(DataError, match=r"sample 0"):
            constraints(["p"], ["c"], [cell])
    with pytest.raises(DataError, match=r"2 names in instruction_id_list but 1 entries in kwargs"):
        constraints(["p"], ["c"], None, [["no_comma", "title"]], [[{}]])
    with pytest.raises(ConfigError, match=r"only = 'punctuatio'.*Did you mean 'punctuation'"):
        constraints(["p"], ["c"], [[]], only="punctuatio")
    for made in (
        lambda: make_reward("constraints", only="number_word"),
        lambda: make_rewards({"short": {"use": "constraints", "options": {"only": "number_word"}}}),
    ):
        with pytest.raises(ConfigError, match=r"only = 'number_word'.*'number_words'.*Known: "):
            made()
    with pytest.raises(ConfigError, match=r"option mode = 'lose'.*Did you mean 'loose'"):
        make_reward("constraints", mode="lose")


def test_users_add_their_own():
    @register_constraint("style:no_exclamation")
    def no_exclamation(text: str, *, most: int = 0) -> bool:
        return text.count("!") <= most

    try:
        assert constraints(["p"], ["Hi!"], [["no_exclamation"]]) == [0.0]
        assert constraints(["p"], ["Hi!"], [row(("no_exclamation", {"most": 1}))]) == [1.0]
        with pytest.raises(ConfigError, match=r"a name that no other constraint has"):
            register_constraint("other:no_exclamation")
    finally:
        from instructrec.rewards import constraint_checks

        del constraint_checks._checks["style:no_exclamation"]
        del constraint_checks._full_names["no_exclamation"]


HOSTILE = ["[" * 20_000, "<<" * 10_000, "*" * 20_001, "\n" * 20_000, " \n" * 10_000, "a." * 10_000]
HOSTILE += ["\ud800", "\x00", "\u202eabc", "e\u0301" * 50, "Day " * 9_000, "\r\n\v\f", "`" * 9_999]


@pytest.mark.slow
def test_hostile_text_is_scored_alone_as_in_a_batch_and_in_no_time():
    rules = row(*((name, settings) for name, settings, _, _ in KNOWN))
    start = time.perf_counter()
    size = len(HOSTILE)
    batch = constraints(["p"] * size, HOSTILE, [rules] * size)
    assert time.perf_counter() - start < 20  # one quadratic check alone would take minutes
    singles = [constraints(["p"], [text], [rules])[0] for text in HOSTILE]
    assert batch == singles
    assert constraints(["p"] * size, HOSTILE[::-1], [rules] * size) == batch[::-1]
    assert all(0 <= score <= 1 for score in batch)


def test_language_is_found_the_same_way_each_time():
    answers = {detected_language("Hallo world, ciao amigo") for _ in range(20)}
    assert len(answers) == 1
    assert detected_language("12345") is None


def uses_our_extensions(name: str, settings: dict) -> bool:
    """Whether IFEval's program would refuse, guess or read them as a regular expression."""
    relation = next((v for k, v in settings.items() if k.endswith("relation")), "at least")
    missing = name == "repeat_prompt" and not settings
    missing |= name == "capital_word_frequency" and "capital_relation" not in settings
    other = "options" in settings or any(mark in str(settings) for mark in ("#", "+", "a.b"))
    return relation not in ("at least", "less than") or other or missing


@pytest.mark.slow
def test_ifeval_s_own_program_agrees(root: Path, monkeypatch: pytest.MonkeyPatch):
    import nltk
    from if_verifiable.common import get_loose_transformations
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT as oracle

    monkeypatch.setattr("langdetect.DetectorFactory.seed", 0)
    assert len(oracle) == IFEVAL and set(oracle) <= set(list_constraints())
    left_out = {"number_sentences"}  # needs a splitter that nltk downloads
    words = nltk.word_tokenize  # as the program calls it, it splits sentences first
    monkeypatch.setattr("nltk.word_tokenize", lambda text: words(text, preserve_line=True))
    texts = [text for _, _, *pair in KNOWN for text in pair if len(text) < 200]
    # The language of a text without letters is decided differently.
    texts = [text for text in texts if any(letter.isalpha() for letter in text)]
    texts += ["The U.S.A. is big.", "A/B TEST", "U.S. OK", "It's OK, NASA. A WELL-KNOWN one!"]
    texts += [(root / name).read_text(encoding="utf-8")[:1500] for name in ("README.md", "LICENSE")]
    if responses := find_spec("ifbench"):  # real responses, where that package is installed
        place = Path(responses.submodule_search_locations[0], "data", "sample_output.jsonl")
        lines = place.read_text(encoding="utf-8").splitlines()[::8]
        texts += [json.loads(line)["response"] for line in lines]
    compared = set()
    for name, settings, _, _ in KNOWN:
        full = next(n for n in list_constraints() if n.endswith(":" + name))
        if full not in oracle or name in left_out or uses_our_extensions(name, settings):
            continue
        checker = oracle[full](full)
        checker.build_description(**settings)
        ours = bound_check(name, settings, "")
        for text in texts:
            assert ours(text) == checker.check_following(text), (name, settings, text)
        compared.add(full)
    assert len(compared) == IFEVAL - len(left_out)
    for text in texts:
        assert sorted(loose_forms(text)) == sorted(get_loose_transformations(text))
