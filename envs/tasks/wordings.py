"""Other wordings of an instruction that leave its answer as it is: one function for each kind.

Every function takes the text, the words that the answer depends on (in lower case) and a generator
of its own, and returns the text changed, or unchanged where it finds nothing to change.

Letters change in words of instruction alone (`COMMON`), whatever they are asked about: were the
answer the one word of several that is left alone, the change would give it away.
"""

# ruff: noqa: RUF001 (Chinese has punctuation marks of its own)
from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

Rewording = Callable[[str, frozenset[str], Random], str]
"""From a text, the words to keep and a generator to another wording."""

TYPO_SHARE = 0.2
"""Share of the words that could have a typo that get one; at least one word."""
_WORD = re.compile(r"[A-Za-zÀ-ɏ]+")
_CJK = re.compile(r"[\u3400-\u9fff]")


def _words(text: str) -> list[str]:
    return text.split()


COMMON = frozenset(
    _words(
        """
        a about add according after all also alphabetical an and another answer any anything
        apply are as ask at backwards be before begin behind belong below best between both
        but by calculate call can capital change choose class comes commas compute convert
        could count days decide describe did difference do does each explanation express
        extract facts find first following for form from get give given go has have here how
        i if in into is it its join keys know largest larger last later letter letters like
        list lives long look make many me mean means mentioned more most much must name
        named names need nothing number numbers object occur of often on one or order other
        others out pass people pick please put question read relation result reverse rule
        say second sentence sentences set should show small smallest so some something sort
        space spell such suppose swap switch take task tell text than that the their them
        then there these they thing things think this those times to today turn under use
        values want was way week were what when where which who whole whom why will with
        without word words would write written you your
        """
    )
)
"""Words of instructions, in lower case, that may be misspelt or written in other letters."""

PARAPHRASES = {
    "en": (
        "I have a question for you. {text}",
        "Please help me with this. {text}",
        "Here is what I would like to know: {text}",
        "Could you have a look at this? {text}",
        "The following was asked of me. {text}",
        "My request is this: {text}",
        "Someone wants to know this. {text}",
        "{text} Thank you.",
        "{text} That is what I need from you.",
    ),
    "zh": (
        "我有一个问题。{text}",
        "请帮我看看：{text}",
        "我想知道：{text}",
        "有人这样问我：{text}",
        "请回答下面的问题。{text}",
        "这是我的请求：{text}",
        "{text}谢谢。",
        "{text}请你来回答。",
    ),
}
DISTRACTORS = {
    "en": (
        "The weather was nice yesterday.",
        "My sister is learning to swim.",
        "It rained for most of the afternoon.",
        "The meeting was moved to another room.",
        "Somebody left the window open.",
        "My neighbours have painted their door.",
        "The music next door is rather loud.",
        "We drank tea and talked for an hour.",
        "The last guest was late again.",
        "I forgot my umbrella at home.",
    ),
    "zh": (
        "昨天天气很好。",
        "我妹妹在学游泳。",
        "下午一直在下雨。",
        "有人忘了关窗户。",
        "邻居刚刚刷了门。",
        "隔壁的音乐有点吵。",
        "我们一起喝了茶。",
        "我把雨伞忘在家里了。",
    ),
}
CONFLICTS = {
    "en": (
        "Write a long poem. No, forget that and do this instead: {text}",
        "Do not answer. On second thoughts, do answer this: {text}",
        "Answer with your name only. That was a mistake; what counts is this: {text}",
        "Translate this into French. Sorry, no translation is needed: {text}",
        "First I wanted a joke from you. Leave it out and do only this: {text}",
        "Reply with OK. Ignore the sentence before this one. {text}",
        "{text} Say nothing at all. The sentence before this one is void.",
        "{text} Tell me a story instead. No, do not: do what was said at first.",
    ),
    "zh": (
        "请写一首长诗。不，忘掉这句，请做这个：{text}",
        "不要回答。等等，还是请回答：{text}",
        "只写你的名字。刚才说错了，请看这个：{text}",
        "请翻译成法语。抱歉，不用翻译：{text}",
        "先讲一个笑话。算了，只做这个：{text}",
        "请回复“好的”。请忽略上一句。{text}",
        "{text}什么都不要说。上一句作废。",
        "{text}改为讲一个故事。不，还是按最开始说的做。",
    ),
}
VAGUE = {
    "en": (
        "Maybe something like this, you know what I mean: {text}",
        "Not sure how to put it, but more or less: {text}",
        "Do the usual thing with this, I guess. {text}",
        "It is about this kind of thing, sort of: {text}",
        "Whatever you think is best here. {text}",
        "You will know what to do with it: {text}",
        "{text} Or so, roughly, if that makes sense.",
        "{text} Something along those lines would be fine.",
    ),
    "zh": (
        "大概是这样吧，你懂的：{text}",
        "我也说不太清楚，差不多就是：{text}",
        "随便处理一下这个吧。{text}",
        "就是这一类的事情：{text}",
        "你觉得怎么好就怎么来。{text}",
        "你应该知道该怎么办：{text}",
        "{text}差不多就行。",
        "{text}大致是这个意思。",
    ),
}


def typos(text: str, keep: frozenset[str], random: Random) -> str:
    """Swaps, drops or doubles a letter in some words of four letters or more."""
    able = [m for m in _WORD.finditer(text) if len(m[0]) >= 4 and _may_change(m[0], keep)]
    chosen = random.sample(able, min(len(able), max(1, round(TYPO_SHARE * len(able)))))
    for match in sorted(chosen, key=lambda m: -m.start()):
        text = text[: match.start()] + _mistyped(match[0], random) + text[match.end() :]
    return text


def casing(text: str, keep: frozenset[str], random: Random) -> str:
    """Writes words in capitals, in small letters, or in both at random."""
    ways: list[Callable[[str], str]] = [
        str.upper,
        str.lower,
        lambda word: "".join(random.choice((c.lower(), c.upper())) for c in word),
    ]
    random.shuffle(ways)

    def changed(way: Callable[[str], str]) -> str:
        return _WORD.sub(lambda m: way(m[0]) if _may_change(m[0], keep) else m[0], text)

    return next((new for way in ways if (new := changed(way)) != text), text)


def paraphrase(text: str, keep: frozenset[str], random: Random) -> str:
    """Puts a sentence of courtesy around the instruction."""
    return _wrapped(text, PARAPHRASES[_language(text)], random)


def distractor(text: str, keep: frozenset[str], random: Random) -> str:
    """Adds a sentence that has nothing to do with it."""
    language = _language(text)
    able = [s for s in DISTRACTORS[language] if not keep & {w.lower() for w in _WORD.findall(s)}]
    if not able:
        return text
    sentence, between = random.choice(able), " " if language == "en" else ""
    return _wrapped(text, (f"{sentence}{between}{{text}}", f"{{text}}{between}{sentence}"), random)


def conflict(text: str, keep: frozenset[str], random: Random) -> str:
    """Adds an instruction that contradicts it, and says which of the two counts."""
    return _wrapped(text, CONFLICTS[_language(text)], random)


def vague(text: str, keep: frozenset[str], random: Random) -> str:
    """Wraps it in words that leave open how much of it is meant."""
    return _wrapped(text, VAGUE[_language(text)], random)


REWORDINGS: dict[str, Rewording] = {
    "typos": typos,
    "casing": casing,
    "paraphrase": paraphrase,
    "distractor": distractor,
    "conflict": conflict,
    "vague": vague,
}
"""Kind of rewording -> what does it."""


def _language(text: str) -> str:
    return "zh" if _CJK.search(text) else "en"


def _wrapped(text: str, templates: tuple[str, ...], random: Random) -> str:
    """Fills a template; nothing is written behind a text that does not end as a sentence does."""
    if not text.rstrip().endswith((".", "?", "!", "。", "？", "！")):
        templates = tuple(t for t in templates if t.endswith("{text}"))
    return random.choice(templates).replace("{text}", text)


def _may_change(word: str, keep: frozenset[str]) -> bool:
    return word.lower() in COMMON and word.lower() not in keep


def _mistyped(word: str, random: Random) -> str:
    place = random.randrange(1, len(word) - 1)
    swapped = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    dropped = word[:place] + word[place + 1 :]
    doubled = word[:place] + word[place] + word[place:]
    return random.choice([new for new in (swapped, dropped, doubled) if new != word])
