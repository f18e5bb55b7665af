"""Skills about a passage: look something up, name the entities, tell who does what to whom."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.skills.base import Choices, Made, Skill
from instructrec.envs.tasks.skills.names import cities_of, people_of
from instructrec.envs.tasks.vocabulary import with_article, words_of

FACTS = (
    ("{name} lives in {value}.", "Where does {name} live?"),
    ("{name} works as {a_value}.", "What is the job of {name}?"),
    ("{name} has {a_value} at home.", "Which animal does {name} have?"),
)
"""A fact about a person, and the question that it answers: cities, jobs, animals."""

LOOKUP_PHRASINGS = (
    "{text} {question}",
    "Read this: {text} {question}",
    "{text} Now tell me: {question}",
    "Text: {text} Question: {question}",
    "Here are some facts. {text} {question}",
    "{question} Use this text: {text}",
    "Answer from the text. {text} {question}",
    "According to this text, {question} Text: {text}",
    "Look it up in the text: {question} {text}",
)


@register_task("passage_lookup")
class PassageLookup(Skill):
    """The one fact about a person among two (1), four (2) or eight of two kinds (3)."""

    family = "passage_lookup"

    def keys(self) -> Sequence[str]:
        """Returns the split's people: each is asked about in turn."""
        return people_of(self.split)

    def make(self, key: str, choices: Choices) -> Made:
        """Chooses the people, what is told of them, what is asked, and the phrasing."""
        number = 2 if self.level == 1 else 4
        people = choices.several(people_of(self.split, key), number - 1)
        people.insert(choices.index(number), key)
        asked = choices.index(len(FACTS))
        values = choices.several(self._values(asked), number)
        told = [self._told(asked, people, values)]
        if self.level == 3:
            other = (asked + 1 + choices.index(len(FACTS) - 1)) % len(FACTS)
            more = self._told(other, people, choices.several(self._values(other), number))
            told.insert(choices.index(2), more)
        prompt = choices.one(LOOKUP_PHRASINGS).format(
            text=" ".join(sentence for sentences in told for sentence in sentences),
            question=FACTS[asked][1].format(name=key),
        )
        answer = values[people.index(key)]
        return Made(prompt, answer, "overlap", keep=(*people, *values))

    def _told(self, fact: int, people: list[str], values: list[str]) -> list[str]:
        return [
            FACTS[fact][0].format(name=name, value=value, a_value=with_article(value))
            for name, value in zip(people, values, strict=True)
        ]

    def _values(self, fact: int) -> list[str]:
        """The values of a fact, of each as many: a choice must have the same number of options."""
        pools = [
            cities_of(self.split),
            list(words_of("job", self.split)),
            list(words_of("animal", self.split)),
        ]
        return pools[fact][: min(map(len, pools))]


MEETINGS = (
    "{a} met {b} in {c}.",
    "{a} and {b} live in {c}.",
    "{a} took {b} to {c}.",
    "{a} called {b} from {c}.",
    "{a} visited {b} in {c}.",
    "{a} travels with {b} to {c}.",
)
"""Sentences with two people and a place."""
ENTITY_PHRASINGS = (
    "List the {kind} in this text: {text}",
    "Which {kind} are named in this text? {text}",
    "Find all {kind} in the text: {text}",
    "Write down the {kind} that occur here: {text}",
    "Extract the {kind}: {text}",
    "{text} List the {kind} of this text.",
    "{text} Which {kind} are mentioned?",
    "Give the names of all {kind} in this: {text}",
)
_ENTITY_JSON = 'JSON with the keys "people" and "places", a list each'
ENTITY_JSON_PHRASINGS = (
    "Write the people and places of this text as {form}: {text}",
    "List the people and the places as {form}: {text}",
    "Extract people and places as {form}. {text}",
    "{text} Give the people and places as {form}.",
    "Text: {text} Answer with {form}.",
    "Who and which places are named here? Answer with {form}: {text}",
    "Find all people and places and write them as {form}: {text}",
    "Read the text and write {form}. {text}",
)


@register_task("entity_extraction")
class EntityExtraction(Skill):
    """The people or the places of one sentence (1) or two (2), or both as JSON (3).

    Every name is a single word, so the F1 of tokens is the F1 of names.
    """

    family = "entity_extraction"

    def keys(self) -> Sequence[str]:
        """Returns the split's people: each is named first in turn."""
        return people_of(self.split)

    def make(self, key: str, choices: Choices) -> Made:
        """Chooses people, places, sentences, what is asked for, and the phrasing."""
        number = 1 if self.level == 1 else 2
        people = [key, *choices.several(people_of(self.split, key), 2 * number - 1)]
        places = choices.several(cities_of(self.split), number)
        text = " ".join(
            choices.one(MEETINGS).format(a=people[2 * i], b=people[2 * i + 1], c=place)
            for i, place in enumerate(places)
        )
        keep = (*people, *places, "people", "places")
        if self.level == 3:
            prompt = choices.one(ENTITY_JSON_PHRASINGS).format(form=_ENTITY_JSON, text=text)
            found = {"people": people, "places": places}
            return Made(prompt, json.dumps(found), "json", keep, _lists_schema(found))
        kind = choices.one(("people", "places"))
        prompt = choices.one(ENTITY_PHRASINGS).format(kind=kind, text=text)
        return Made(prompt, ", ".join(people if kind == "people" else places), "overlap", keep)


VERBS = ("teaches", "helps", "pays", "calls", "knows", "visits", "trusts", "follows")
"""What one person does to another."""
_RELATION_JSON = 'a JSON object with the keys "from", "relation" and "to"'
_TRIPLES_JSON = 'a JSON list of lists such as ["from", "relation", "to"]'
RELATION_PHRASINGS: dict[int, tuple[str, ...]] = {
    1: (
        "Write this as {form}: {text}",
        "Who does what to whom? Answer with {form}: {text}",
        "Turn the sentence into {form}. {text}",
        "{text} Write that as {form}.",
        "Extract the relation as {form}: {text}",
        "Text: {text} Answer with {form}.",
        "Read the sentence and give {form}. {text}",
        "{text} Give the relation as {form}.",
    ),
    2: (
        "{text} Who {verb} whom? Answer with {form}.",
        "Who {verb} whom? {text} Write {form}.",
        "Text: {text} Find out who {verb} whom and write {form}.",
        "Write {form} that says who {verb} whom: {text}",
        "Read this: {text} Tell who {verb} whom as {form}.",
        "{text} Extract who {verb} whom as {form}.",
        "Find who {verb} whom in this text and give {form}. {text}",
        "Give {form} for the one who {verb} somebody: {text}",
    ),
    3: (
        "Write all relations of this text as {form}: {text}",
        "Who does what to whom? Answer with {form}: {text}",
        "Turn the sentences into {form}. {text}",
        "{text} Write all of that as {form}.",
        "Extract all relations as {form}: {text}",
        "Text: {text} Answer with {form}.",
        "Read the sentences and give {form}. {text}",
        "{text} Give all relations as {form}.",
    ),
}


@register_task("relation_extraction")
class RelationExtraction(Skill):
    """Who does what to whom, as JSON: of a sentence (1), the one asked for (2), all (3)."""

    family = "relation_extraction"

    def keys(self) -> Sequence[str]:
        """Returns the split's people: each is in the sentence asked for, or in the first."""
        return people_of(self.split)

    def make(self, key: str, choices: Choices) -> Made:
        """Chooses people, verbs, what is asked for, and the phrasing."""
        number = self.level
        others = choices.several(people_of(self.split, key), 2 * number - 1)
        verbs = choices.several(VERBS, number)
        triples = [[key, verbs[0], others[0]]]
        triples += [[others[2 * i - 1], verbs[i], others[2 * i]] for i in range(1, number)]
        asked = triples[0]
        if self.level == 2 and choices.index(2):
            triples.reverse()
        text = " ".join(f"{subject} {verb} {target}." for subject, verb, target in triples)
        form = _TRIPLES_JSON if self.level == 3 else _RELATION_JSON
        phrasing = choices.one(RELATION_PHRASINGS[self.level])
        prompt = phrasing.format(text=text, form=form, verb=asked[1])
        keep = (key, *others, *verbs, "from", "relation", "to")
        if self.level == 3:
            return Made(prompt, json.dumps(triples), "json", keep, _all_of(triples))
        answer = dict(zip(("from", "relation", "to"), asked, strict=True))
        return Made(prompt, json.dumps(answer), "json", keep)


def _all_of(values: Sequence[Any]) -> dict[str, Any]:
    """The schema of a list that holds each value once, in any order."""
    number = len(values)
    return {
        "type": "array",
        "items": {"enum": list(values)},
        "uniqueItems": True,
        "minItems": number,
        "maxItems": number,
    }


def _lists_schema(lists: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _all_of(values) for name, values in lists.items()},
        "required": list(lists),
        "additionalProperties": False,
    }
