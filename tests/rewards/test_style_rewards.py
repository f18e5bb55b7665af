"""length, repetition, refusal and language: known answers and refused options."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from instructrec.errors import ConfigError, DataError
from instructrec.rewards import make_reward, make_rewards
from instructrec.rewards.language import Language, language_probabilities
from instructrec.rewards.style import Length, no_refusal, refusal, repetition


@pytest.mark.parametrize(
    ("size", "options", "score"),
    [
        (5, {"target": 5}, 1.0),
        (4, {"target": 5}, 0.0),
        (4, {"target": 5, "soft": 4}, 0.75),
        (6, {"target": 5, "soft": 4}, 0.75),
        (9, {"target": 5, "soft": 4}, 0.0),
        (99, {"target": 5, "soft": 4}, 0.0),
        (3, {"minimum": 3, "maximum": 5}, 1.0),
        (5, {"minimum": 3, "maximum": 5}, 1.0),
        (6, {"minimum": 3, "maximum": 5}, 0.0),
        (2, {"minimum": 3, "soft": 2}, 0.5),
        (99, {"minimum": 3}, 1.0),
        (0, {"maximum": 3}, 1.0),
        (0, {"target": 0}, 1.0),
    ],
)
def test_a_response_is_as_long_as_wanted_or_less_rewarded(size, options, score):
    assert Length(**options)(["word " * size]) == [score]
    assert Length(unit="characters", **options)(["あ" * size]) == [score]
    ids = [[7] * size]
    assert make_reward("length", unit="tokens", **options)(["p"], ["x"], completion_ids=ids) == [
        score
    ]


@given(st.integers(0, 60), st.integers(1, 40), st.integers(1, 20))
def test_it_is_the_soft_overlong_punishment_of_dapo(size, longest, cache):
    """R = 0 up to L_max - L_cache, ((L_max - L_cache) - |y|) / L_cache up to L_max, then -1."""
    longest += cache
    if size <= longest - cache:
        punishment = 0.0
    elif size <= longest:
        punishment = ((longest - cache) - size) / cache
    else:
        punishment = -1.0
    reward = Length(maximum=longest - cache, soft=cache, unit="characters")
    assert reward(["x" * size]) == [pytest.approx(1 + punishment)]


def test_each_sample_may_have_its_own_length():
    assert Length()(["a b", "a b", "a"], target=[2, 3.0, None]) == [1.0, 0.0, None]
    reward = make_reward("length", target_column="words")
    assert reward(["p"], ["a b"], words=[2]) == [1.0]
    # A column of that name means something else to a reward that knows its length.
    assert make_reward("length", maximum=3)(["p"], ["a b"], target=["gold answer"]) == [1.0]


def test_wrong_lengths_are_refused():
    with pytest.raises(ConfigError, match=r"minimum = 5 is above maximum = 3"):
        make_reward("length", minimum=5, maximum=3)
    with pytest.raises(ConfigError, match=r"set target, or minimum and maximum, not both"):
        make_reward("length", minimum=5, target=3)
    with pytest.raises(ConfigError, match=r"soft = -1; expected at least 0"):
        make_reward("length", target=3, soft=-1)
    with pytest.raises(ConfigError, match=r"does not know which length is wanted"):
        make_reward("length")(["p"], ["a"])
    for wrong in ("3", 2.5, -1, True, float("nan")):
        with pytest.raises(DataError, match=r"the target of sample 0 is"):
            Length()(["a"], target=[wrong])
    with pytest.raises(DataError, match=r"'tokens' needs 'completion_ids'"):
        make_reward("length", unit="tokens", target=3)(["p"], ["a"])


@pytest.mark.parametrize(
    ("text", "options", "score"),
    [
        ("a b c d", {}, 1.0),
        ("a b a b a b", {"n": 2}, 2 / 5),
        ("a a a a", {"n": 1}, 1 / 4),
        ("a a a a a", {}, 1 / 3),
        ("a a", {}, 1.0),
        ("", {}, 1.0),
        ("ababab", {"n": 2, "unit": "characters"}, 2 / 5),
    ],
)
def test_repeated_parts_lower_the_score(text, options, score):
    assert repetition([text], **options) == [pytest.approx(score)]


def test_repetition_counts_token_ids():
    rewards = make_rewards({"repetition": {"options": {"unit": "tokens", "n": 1}}})
    batch = rewards.score(["p"], ["x"], {}, {"completion_ids": [[1, 2, 2, 2]]})
    assert batch.total.tolist() == [0.5]
    with pytest.raises(ConfigError, match=r"n = 0; expected at least 1"):
        repetition(["a"], n=0)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I can\u2019t assist you.",
        "I cannot provide instructions for this.",
        "Sorry, I am unable to do this.",
        "I'm afraid we cannot do that here.",
        "I am not able to help with this request.",
        "I won't help with that.",
        "I must decline.",
        "I have to refuse to write this.",
        "As an AI language model, I can't have opinions.",
        "I'm not comfortable with this.",
        "That goes against my guidelines.",
        "I apologize, but I\ncannot answer.",
        "I cannot help you.",
        "I cannot recommend this drug. That is enough.",
        "I can't provide enough detail.",
    ],
)
def test_refusals_are_recognised(text):
    assert refusal([text]) == [1.0]
    assert no_refusal([text]) == [0.0]


@pytest.mark.parametrize(
    "text",
    [
        "Sure! Here is how.",
        "I can't wait to help you with that!",
        "I cannot help but smile.",
        "I can't help thinking of summer.",
        "I can't recommend this book enough!",
        "I'm so sorry for your loss, I can't imagine how hard this is.",
        "Sorry, I can't even begin to imagine that.",
        "You cannot divide by zero.",
        "I'm sorry to hear that. Here is what to do.",
        "The function returns an AI model that cannot overfit.",
        "",
        "Here is a long answer. " * 20 + "I cannot help with that.",
    ],
)
def test_answers_are_not_taken_for_refusals(text):
    assert refusal([text]) == [0.0]
    assert no_refusal([text]) == [1.0]


def test_refusals_of_other_languages_are_declared():
    assert refusal(["Das geht leider nicht."], phrases=["LEIDER nicht"]) == [1.0]
    assert refusal(["I cannot help."], phrases=["leider nicht"]) == [0.0]
    with pytest.raises(ConfigError, match=r"phrases = 'no': expected a list of texts"):
        make_reward("refusal", phrases="no")(["p"], ["a"])
    with pytest.raises(ConfigError, match=r"reward 'no_refusal'.*within = 0; expected at least 1"):
        no_refusal(["a"], within=0)


SAMPLES = {
    "de": "Der Zug fährt heute leider zehn Minuten später ab.",
    "en": "The train leaves ten minutes later today, unfortunately.",
    "es": "Lamentablemente, el tren sale hoy diez minutos más tarde.",
    "fr": "Malheureusement, le train part dix minutes plus tard aujourd'hui.",
    "it": "Purtroppo oggi il treno parte con dieci minuti di ritardo.",
    "ru": "Сегодня, увы, поезд отправляется на десять минут позже.",
    "el": "Δυστυχώς, το τρένο φεύγει σήμερα δέκα λεπτά αργότερα.",
    "ar": "للأسف يغادر القطار اليوم متأخرا عشر دقائق.",
    "hi": "दुर्भाग्य से ट्रेन आज दस मिनट देरी से चलेगी।",
    "ja": "残念ながら今日は電車が十分遅れて出発します。",
    "zh": "很遗憾今天火车晚点十分钟出发。",
}


@pytest.mark.parametrize("code", SAMPLES)
def test_languages_are_told_apart(code):
    texts = list(SAMPLES.values())
    assert Language(code)(texts) == [float(other == code) for other in SAMPLES]


def test_it_is_what_py3langid_says_in_whatever_order_texts_come():
    oracle = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    texts = [*SAMPLES.values(), "ok", "la la la", "<br>"]
    random.Random(0).shuffle(texts)
    for text in texts:
        code, probability = oracle.classify(text)
        best = next(iter(language_probabilities(text).items()))
        assert best == (code, pytest.approx(probability))
        assert Language(code, score="probability")([text]) == [pytest.approx(probability)]


def test_short_texts_are_told_apart_among_a_few_languages():
    among = ["de", "en", "fr"]
    assert Language("fr", among=among)(["merci beaucoup", "thank you"]) == [1.0, 0.0]
    assert set(language_probabilities("merci", ("de", "fr"))) == {"de", "fr"}


def test_without_letters_there_is_no_language():
    assert Language("en")(["42 + 1 = 43", "", "!?"]) == [0.0] * 3
    assert Language("en", score="probability")(["42"]) == [0.0]


def test_each_sample_may_have_its_own_language():
    texts = [SAMPLES["de"], SAMPLES["de"], SAMPLES["en"]]
    assert Language()(texts, language=["de-AT", "EN", None]) == [1.0, 0.0, None]
    reward = make_reward("language", language_column="lang")
    assert reward(["p"], [SAMPLES["fr"]], lang=["fr"]) == [1.0]


THREADS = """
import threading
from instructrec.rewards.language import detected_language, language_probabilities
texts = ["Der Zug kommt heute leider zu spät an.", "The train is late again today, sadly."]
found, start = [], threading.Barrier(8)

def work():
    start.wait()
    first = [next(iter(language_probabilities(text))) for text in texts]
    found.append((first, [detected_language(text) for text in texts]))

threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert found == [(["de", "en"], ["de", "en"])] * 8, found
"""


def test_threads_may_ask_for_the_first_language_at_the_same_time():
    pytest.importorskip("langdetect")
    run = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_wrong_languages_are_refused():
    with pytest.raises(ConfigError, match=r"unknown language 'xx'"):
        make_reward("language", language="xx")
    with pytest.raises(ConfigError, match=r"unknown language 'fr'.*Known: de, en"):
        make_reward("language", language="fr", among=["de", "en"])
    with pytest.raises(ConfigError, match=r"among = \['de'\]: expected a list of two or more"):
        make_reward("language", language="de", among=["de"])
    with pytest.raises(ConfigError, match=r"does not know which one is wanted"):
        make_reward("language")(["p"], ["a"])
    with pytest.raises(DataError, match=r"the language of sample 1: .*unknown language 'klingon'"):
        Language()(["a", "b"], language=["de", "klingon"])


def test_a_run_without_a_wanted_length_or_constraints_ends_before_it_begins():
    with pytest.raises(ConfigError, match="does not know which length is wanted"):
        make_rewards("length").check_columns(["prompt"])
    make_rewards({"length": {"options": {"maximum": 3}}}).check_columns(["prompt"])
    make_rewards({"length": {"options": {"target_column": "words"}}}).check_columns(["words"])
    with pytest.raises(DataError, match="needs the column 'constraints'"):
        make_rewards("constraints").check_columns(["prompt"])
    renamed = {"constraints": {"options": {"constraints_column": "rules"}}}
    make_rewards(renamed).check_columns(["rules"])
