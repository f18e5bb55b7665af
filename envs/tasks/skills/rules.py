"""The skill of applying a rule that the instruction states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.partition import numbers_of
from instructrec.envs.tasks.skills.base import Choices, Made, Skill
from instructrec.envs.tasks.skills.words import short_words

LABELS = ("red", "blue", "green", "yellow", "black", "white")
"""Names of classes."""
LETTERS = tuple("aeiorstn")
"""Letters that a rule may ask for."""
RULES = {
    1: "Numbers above {limit} are {labels[0]}, all others are {labels[1]}.",
    2: "Words with the letter {letter} are {labels[0]}, all others are {labels[1]}.",
    3: "Even numbers above {limit} are {labels[0]}, other even numbers are {labels[1]}, and odd "
    "numbers are {labels[2]}.",
}
"""Level -> the rule."""
PHRASINGS = (
    "{rule} What is {thing}?",
    "{rule} Of which class is {thing}?",
    "Rule: {rule} Say what {thing} is.",
    "{rule} So what do you call {thing}?",
    "By this rule, what is {thing}? {rule}",
    "Here is a rule. {rule} Which class does {thing} have?",
    "{rule} Name the class of {thing}.",
    "Apply the rule to {thing}. {rule}",
    "What is {thing} by the following rule? {rule}",
)


@register_task("rule_classification")
class RuleClassification(Skill):
    """Numbers above a limit (1), words with a letter (2), numbers in three classes (3)."""

    family = "rule_classification"

    def keys(self) -> Sequence[Any]:
        """Returns the split's two-digit numbers, or its short nouns."""
        return short_words(self.split) if self.level == 2 else numbers_of(self.split, 10, 99)

    def make(self, key: Any, choices: Choices) -> Made:
        """Chooses limit or letter, the names of the classes, and the phrasing."""
        labels = choices.several(LABELS, 3 if self.level == 3 else 2)
        limit, letter = 0, ""
        if self.level == 2:
            letter = choices.one(LETTERS)
            answer = labels[0] if letter in key else labels[1]
        else:
            limit = choices.one(numbers_of(self.split, 10, 99))
            answer = labels[0] if key > limit else labels[1]
            if self.level == 3 and key % 2:
                answer = labels[2]
        rule = RULES[self.level].format(limit=limit, letter=letter, labels=labels)
        prompt = choices.one(PHRASINGS).format(rule=rule, thing=key)
        return Made(prompt, answer, keep=(str(key), *labels))
