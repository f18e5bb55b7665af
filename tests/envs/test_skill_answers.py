"""Answers of the skills, computed again from the prompt alone, by other means than the task's."""

import json
import re
from datetime import datetime, timedelta

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.envs.tasks.skills.names import CITIES, PEOPLE
from instructrec.envs.tasks.vocabulary import CATEGORIES

KIND_OF = {word: kind for kind, words in CATEGORIES.items() for word in words}
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
WEEKDAYS_ZH = ["星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"]
IN_SMALL = {"kilometres": 1000, "kilograms": 1000, "litres": 1000, "weeks": 7}
IN_SMALL |= {"公里": 1000, "千克": 1000, "升": 1000, "周": 7}
COLOURS = "red|blue|green|yellow|black|white"


def nouns(prompt):
    return [word for word in re.findall(r"[a-z]+", prompt) if word in KIND_OF]


def numbers(prompt):
    return [int(number) for number in re.findall(r"\d+", prompt)]


def of(words, prompt):
    return [word for word in re.findall(r"[A-Z][a-z]+", prompt) if word in words]


def string_operations(prompt):
    words = nouns(prompt)
    if "join the words" in prompt.lower():
        return "-".join(word.upper() for word in words)
    if "backwards" in prompt:
        return "".join(reversed("".join(words)))
    if "and then the last letter" in prompt:
        return words[0][:1] + words[1][-1:]
    if "first letter" in prompt:
        return words[0][:1]
    if "last letter" in prompt:
        return words[0][-1:]
    if "capital" in prompt:
        return words[0].upper()
    if "without the letters" in prompt:
        return re.sub("[aeiou]", "", words[0])
    return re.sub(r"(?<=.)(?=.)", "-", words[0])


def ordering(prompt):
    things = numbers(prompt) or nouns(prompt)
    is_reverse = "reverse" in prompt or "from the largest" in prompt
    ranked = [min(things)]
    while len(ranked) < len(things):
        ranked.append(min(thing for thing in things if thing > ranked[-1]))
    return ", ".join(map(str, ranked[::-1] if is_reverse else ranked))


def counting(prompt):
    words = nouns(prompt)
    if "letter" in prompt:
        return str(len(words[0]))
    asked = re.search(rf"\b({'|'.join(CATEGORIES)})\b", prompt)
    if asked:
        return str(sum(KIND_OF[word] == asked[1] for word in words))
    noun = rf"(?:{'|'.join(sorted(set(words)))})"
    run = re.search(rf"\b{noun}(?: {noun}){{5}}\b", prompt)[0]
    (asked,) = nouns(prompt.replace(run, "", 1))
    return str(run.split().count(asked))


def written(text, words):
    """A format that the prompt asks for, by what it says."""
    text = text.lower()
    if "keys first and second" in text:
        return {"first": words[0], "second": words[1]}
    if "numbers of letters" in text:
        return {word: len(word) for word in words}
    if "json list, in capital" in text:
        return [word.upper() for word in words]
    if "json list" in text:
        return words
    if "numbered list" in text:
        return "\n".join(f"{number + 1}. {word}" for number, word in enumerate(words))
    if "hyphen and a space" in text:
        return "\n".join("- " + word for word in words)
    if "line of its own" in text:
        return "\n".join(words)
    if "brackets" in text:
        return "[" + " ".join(words) + "]"
    if "semicolon" in text:
        return "; ".join(words)
    return (", " if "commas" in text else " ").join(words).upper()


def format_following(prompt):
    form = written(prompt, [w for w in nouns(prompt) if w not in ("space", "line")])
    return form if isinstance(form, str) else json.dumps(form)


def days_of(prompt):
    if "年" in prompt:
        return [datetime(*map(int, d)) for d in re.findall(r"(\d+)年(\d+)月(\d+)日", prompt)]
    found = re.findall(r"\d+ [A-Z][a-z]+ \d{4}", prompt)
    return [datetime.strptime(day, "%d %B %Y") for day in found]


def date_reasoning(prompt):
    days = days_of(prompt)
    if len(days) == 2:
        return str(abs((days[1] - days[0]).days))
    if days:
        left = re.sub(r"\d+年\d+月\d+日|\d+ [A-Z][a-z]+ \d{4}", "", prompt)
        return (days[0] + timedelta(days=numbers(left)[0])).strftime("%Y-%m-%d")
    names = WEEKDAYS_ZH if "星期" in prompt else WEEKDAYS
    today = next(name for name in names if name in prompt)
    step = numbers(prompt)[0] % 7
    return (names + names)[names.index(today) + step]


def unit_conversion(prompt):
    unit = r"[a-z]*(?:metres|grams|litres|minutes|seconds|hours|days|weeks)"
    if re.search(r"[一-鿿]", prompt):
        unit = "公里|厘米|米|千克|克|毫升|升|小时|分钟|秒|天|周"
    amounts = re.findall(rf"(\d+) ?({unit})", prompt)
    rest = re.sub(rf"\d+ ?({unit})", "", prompt)
    target = re.search(unit, rest)[0]
    seconds = {"weeks": 604800, "days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
    seconds |= {"周": 604800, "天": 86400, "小时": 3600, "分钟": 60, "秒": 1}
    sizes = seconds | {"kilometres": 100000, "metres": 100, "centimetres": 1}
    sizes |= {"公里": 100000, "米": 100, "厘米": 1, "千克": 1000, "克": 1, "升": 1000, "毫升": 1}
    sizes |= {"kilograms": 1000, "grams": 1, "litres": 1000, "millilitres": 1}
    total = sum(int(number) * sizes[name] for number, name in amounts)
    assert total % sizes[target] == 0
    return str(total // sizes[target])


def passage_lookup(prompt):
    asked = re.search(r"(Where does|job of|animal does) ([A-Z][a-z]+)", prompt)
    verb = {"Where does": "lives in", "job of": "works as an?", "animal does": "has an?"}[asked[1]]
    return re.search(rf"{asked[2]} {verb} (\w+)", prompt)[1]


def entity_extraction(prompt):
    people, places = of(PEOPLE, prompt), of(CITIES, prompt)
    if "JSON" in prompt:
        return json.dumps({"people": people, "places": places})
    return ", ".join(people if "people" in prompt else places)


def relation_extraction(prompt):
    triples = re.findall(r"([A-Z][a-z]+) ([a-z]+) ([A-Z][a-z]+)\.", prompt)
    if "list of lists" in prompt:
        return json.dumps([list(triple) for triple in triples])
    if len(triples) > 1:
        asked = re.search(r"(?:[Ww]ho|one who) ([a-z]+)", prompt)[1]
        triples = [triple for triple in triples if triple[1] == asked]
    return json.dumps(dict(zip(("from", "relation", "to"), triples[0], strict=True)))


def rule_classification(prompt):
    classes = re.findall(rf"\b({COLOURS})\b", prompt)
    if letter := re.search(r"the letter ([a-z]) ", prompt):
        (word,) = nouns(prompt)
        return classes[word.find(letter[1]) < 0]
    limit = int(re.search(r"above (\d+)", prompt)[1])
    number = int(re.search(r"\d+", re.sub(r"above \d+", "", prompt))[0])
    if len(classes) == 3 and number % 2 == 1:
        return classes[2]
    return classes[0] if number > limit else classes[1]


SOLVERS = {
    solver.__name__: solver
    for solver in (
        *(string_operations, ordering, counting, format_following, date_reasoning),
        *(unit_conversion, passage_lookup, entity_extraction, relation_extraction),
        rule_classification,
    )
}
CELLS = [(family, level, "en") for family in SOLVERS for level in (1, 2, 3)]
CELLS += [(f, level, "zh") for f in ("date_reasoning", "unit_conversion") for level in (1, 2, 3)]


@pytest.mark.parametrize(("family", "level", "language"), CELLS)
def test_answers_follow_from_the_prompt(family, level, language):
    task = make_task(family, level=level, language=language, seed=11, size=600)
    for i in range(600):
        assert SOLVERS[family](task[i].prompt) == task[i].columns["reference"], task[i].prompt
