"""bleu, chrf, ter, rouge and meteor equal their reference libraries; meteor says what it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.tokenizers.tokenizer_ter import TercomTokenizer

from instructrec.errors import ConfigError
from instructrec.rewards import make_reward
from instructrec.rewards.meteor import Meteor
from instructrec.rewards.overlap import bleu, chrf, ter
from instructrec.rewards.rouge import rouge

PAIRS = [
    ("the cat sat on the mat", ["the cat sat on the mat"]),
    ("the cat sat on a mat", ["the cat sat on the mat"]),
    ("mat the on sat cat the", ["the cat sat on the mat"]),
    ("the the the the", ["the cat is here", "a cat"]),
    ("a quick brown fox", ["the quick brown fox jumps", "a brown fox"]),
    ("Paris", ["paris"]),
    ("It is Paris, of course, and has always been.", ["Paris"]),
    ("nothing shared here", ["completely different"]),
    ("", ["something"]),
    ("Das ist gut!", ["Das ist sehr gut."]),
    ("今日は 良い天気です。", ["今日は 悪い天気です"]),
]
TEXTS = [text for text, _ in PAIRS]
REFERENCES = [references for _, references in PAIRS]
SENTENCES = st.lists(
    st.sampled_from(["the", "red", "Red", "fox", ",", "ran", "é"]), max_size=7
).map(" ".join)


@pytest.mark.parametrize(
    ("options", "oracle"),
    [
        ({"smoothing": "none"}, BLEU(effective_order=True, smooth_method="none")),
        ({"smoothing": "floor"}, BLEU(effective_order=True, smooth_method="floor")),
        (
            {"smoothing": "add-k", "smoothing_value": 0.5},
            BLEU(effective_order=True, smooth_method="add-k", smooth_value=0.5),
        ),
        ({"max_order": 2}, BLEU(effective_order=True, max_ngram_order=2)),
    ],
)
def test_smoothing_and_order_of_bleu_equal_sacrebleu(options, oracle):
    expected = [oracle.sentence_score(text, refs).score / 100 for text, refs in PAIRS]
    assert bleu(TEXTS, REFERENCES, **options) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter"])
def test_the_score_is_what_the_command_line_of_sacrebleu_prints(name, tmp_path):
    file = tmp_path / "references.txt"
    file.write_text("\n".join(refs[0] for refs in REFERENCES) + "\n", encoding="utf-8")
    options = ["--sentence-level", "--score-only", "--width", "9", "--metrics", name]
    run = subprocess.run(
        [sys.executable, "-m", "sacrebleu", str(file), *options],
        input="\n".join(TEXTS) + "\n",
        capture_output=True,
        encoding="utf-8",
        check=True,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    printed = [float(line) / 100 for line in run.stdout.split()]
    expected = [max(0.0, 1 - rate) for rate in printed] if name == "ter" else printed
    got = make_reward(name)(TEXTS, TEXTS, reference=[refs[0] for refs in REFERENCES])
    assert got == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "oracle"),
    [
        ({}, CHRF()),
        ({"word_order": 2}, CHRF(word_order=2)),
        ({"char_order": 3, "beta": 1}, CHRF(char_order=3, beta=1)),
        ({"lowercase": True, "whitespace": True}, CHRF(lowercase=True, whitespace=True)),
    ],
)
def test_chrf_equals_sacrebleu(options, oracle):
    expected = [oracle.sentence_score(text, refs).score / 100 for text, refs in PAIRS]
    assert chrf(TEXTS, REFERENCES, **options) == pytest.approx(expected, abs=1e-12)


def test_a_hand_computed_chrf():
    # Characters only: 3 of 4 letters on both sides; letters weigh alike at beta 1: F = 3/4.
    assert chrf(["abcd"], ["abce"], char_order=1, beta=1) == [pytest.approx(0.75)]


@pytest.mark.parametrize(
    ("options", "oracle"),
    [
        ({}, TER()),
        ({"case_sensitive": True, "no_punct": True}, TER(case_sensitive=True, no_punct=True)),
        ({"normalized": True, "asian_support": True}, TER(normalized=True, asian_support=True)),
    ],
)
def test_ter_is_one_minus_that_of_sacrebleu(options, oracle):
    rates = [oracle.sentence_score(text, refs).score / 100 for text, refs in PAIRS]
    expected = [max(0.0, 1 - rate) for rate in rates]
    assert ter(TEXTS, REFERENCES, **options) == pytest.approx(expected, abs=1e-12)
    assert max(rates) > 1 and len(set(expected)) > 4


def test_a_hand_computed_ter():
    # One replacement in six words; one word moved is one edit too.
    assert ter(["the cat sat on a mat"], ["the cat sat on the mat"]) == [pytest.approx(5 / 6)]
    assert ter(["b c d a"], ["a b c d"]) == [pytest.approx(3 / 4)]


@settings(max_examples=60)
@given(SENTENCES, st.lists(SENTENCES.filter(str.strip), min_size=1, max_size=3))
def test_metrics_of_sacrebleu_are_equal_on_any_text(response, references):
    assert bleu([response], [references])[0] == pytest.approx(
        sacrebleu.sentence_bleu(response, references).score / 100, abs=1e-12
    )
    assert chrf([response], [references])[0] == pytest.approx(
        sacrebleu.sentence_chrf(response, references).score / 100, abs=1e-12
    )
    assert ter([response], [references])[0] == pytest.approx(
        max(0.0, 1 - sacrebleu.sentence_ter(response, references).score / 100), abs=1e-12
    )


def test_long_texts_are_not_kept_by_the_tokenizers():
    kept = TercomTokenizer.__call__.cache_info
    ter(["a", "b"], ["b", "b"])
    assert kept().currsize > 0
    ter(["a" * 10_000_000], ["b"])
    assert kept().currsize == 0


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_equals_rouge_score(variant, stemmer):
    lines = [
        ("The cats sat.\nThey were running home", "The cat sat down.\nIt ran home"),
        ("one line here", "another line\none here"),
        *((text, refs[0]) for text, refs in PAIRS),
    ]
    oracle = RougeScorer([variant], use_stemmer=stemmer)
    for measure in ("fmeasure", "precision", "recall"):
        expected = [getattr(oracle.score(ref, text)[variant], measure) for text, ref in lines]
        texts, references = [text for text, _ in lines], [ref for _, ref in lines]
        options = {"variant": variant, "stemmer": stemmer, "measure": measure}
        assert rouge(texts, references, tokenize="latin", **options) == pytest.approx(expected)
        plain = [i for i, pair in enumerate(lines) if "".join(pair).isascii()]
        got = rouge([texts[i] for i in plain], [references[i] for i in plain], **options)
        assert got == pytest.approx([expected[i] for i in plain])


@settings(max_examples=60)
@given(SENTENCES, st.lists(SENTENCES.filter(str.strip), min_size=1, max_size=3))
def test_the_best_reference_counts_for_rouge_as_in_rouge_score(response, references):
    oracle = RougeScorer(["rougeL"]).score_multi(references, response)["rougeL"].fmeasure
    assert rouge([response], [references], tokenize="latin") == [pytest.approx(oracle)]


def test_rouge_reads_scripts_other_than_latin():
    pairs = [("το σπίτι είναι μικρό", "το σπίτι είναι μεγάλο"), ("हिन्दी भाषा", "हिन्दी")]
    texts, references = [text for text, _ in pairs], [ref for _, ref in pairs]
    assert rouge(texts, references, tokenize="latin") == [0.0, 0.0]
    assert rouge(texts, references) == pytest.approx([3 / 4, 2 / 3])
    # 7 of 9 characters are shared in order.
    scores = rouge(["今日は良い天気です"], ["今日は悪い天気です"], tokenize="characters")
    assert scores == [pytest.approx(8 / 9)]


class NoWordNet:
    def synsets(self, word):
        return []


def test_meteor_without_synonyms_equals_nltk():
    everything = [(text, ref) for text, refs in PAIRS for ref in refs]
    pairs = [pair for pair in everything if not set("".join(pair)) & set(".,!。")]
    texts, references = [text for text, _ in pairs], [ref for _, ref in pairs]
    expected = [
        single_meteor_score(ref.split(), text.split(), wordnet=NoWordNet()) for text, ref in pairs
    ]
    got = Meteor(synonyms=False)(texts, references)
    assert got == pytest.approx(expected)
    assert len(set(expected)) > 4


def test_hand_computed_meteors():
    reward = Meteor(synonyms=False)
    assert reward(["Paris"], ["paris"]) == [0.5]  # one match, one chunk: half is the penalty
    assert reward(["the cats sat"], ["the cat sat"]) == [pytest.approx(1 - 0.5 / 27)]
    assert Meteor(synonyms=False, gamma=0.0)(["Paris"], ["Paris"]) == [1.0]


def run_meteor(code: str, folder: Path) -> str:
    """Prints of a fresh interpreter that looks for nltk's data in one folder alone."""
    script = f"import nltk\nnltk.data.path[:] = [{str(folder)!r}]\n{code}"
    env = {**os.environ, "NLTK_DATA": str(folder)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_meteor_without_the_data_of_wordnet_says_what_to_do(tmp_path):
    code = """
from instructrec.errors import ConfigError
from instructrec.rewards import make_reward
try:
    make_reward("meteor")
except ConfigError as error:
    print(error)
print(make_reward("meteor", synonyms=False)(["p"], ["a b c"], reference=["a b c"]))
"""
    out = run_meteor(code, tmp_path)
    assert "needs the data of WordNet" in out and "nltk.downloader wordnet" in out
    assert "synonyms to false" in out
    assert f"{1 - 0.5 / 27:.6f}" in out


def write_wordnet(folder: Path) -> None:
    """A WordNet of one entry: car and auto are synonyms."""
    root = folder / "corpora" / "wordnet"
    root.mkdir(parents=True)
    for kind in ("adj", "adv", "noun", "verb"):
        for name in (f"index.{kind}", f"data.{kind}", f"{kind}.exc"):
            (root / name).write_text("")
    (root / "cntlist.rev").write_text("")
    (root / "index.sense").write_text("")
    (root / "lexnames").write_text("0 noun.artifact 1\n")
    (root / "data.noun").write_text(" " * 9 + "\n00000010 00 n 02 car 0 auto 0 000 | a vehicle\n")
    (root / "index.noun").write_text("auto n 1 0 1 0 00000010\ncar n 1 0 1 0 00000010\n")


def test_meteor_matches_synonyms_when_wordnet_is_there(tmp_path):
    write_wordnet(tmp_path)
    code = """
from instructrec.rewards import make_reward
for synonyms in (True, False):
    reward = make_reward("meteor", synonyms=synonyms)
    print(reward(["p"], ["the car runs"], reference=["the auto runs"])[0])
"""
    with_synonyms, without = map(float, run_meteor(code, tmp_path).split())
    assert with_synonyms == pytest.approx(1 - 0.5 / 27)  # three matches in one chunk
    assert without == pytest.approx(2 / 3 * 0.5)  # two matches in two chunks


def test_wrong_options_of_overlap_rewards_are_refused():
    with pytest.raises(ConfigError, match=r"smoothing = 'expo'.*Did you mean 'exp'"):
        make_reward("bleu", smoothing="expo")
    with pytest.raises(ConfigError, match=r"max_order = 0; expected at least 1"):
        bleu(["a"], ["a"], max_order=0)
    with pytest.raises(ConfigError, match=r"char_order = 0; expected at least 1"):
        chrf(["a"], ["a"], char_order=0)
    with pytest.raises(ConfigError, match=r"variant = 'rouge3'"):
        rouge(["a"], ["a"], variant="rouge3")
    with pytest.raises(ConfigError, match=r"gamma = 1.5: expected at most 1"):
        make_reward("meteor", synonyms=False, gamma=1.5)
