"""The skill of converting units, in English and Chinese."""

# ruff: noqa: RUF001 (Chinese has punctuation marks of its own)
from __future__ import annotations

from collections.abc import Sequence

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.partition import numbers_of
from instructrec.envs.tasks.skills.base import Choices, Made, Skill

UNITS: dict[str, tuple[tuple[str, str, int], ...]] = {
    "en": (
        ("kilometres", "metres", 1000),
        ("metres", "centimetres", 100),
        ("kilograms", "grams", 1000),
        ("litres", "millilitres", 1000),
        ("hours", "minutes", 60),
        ("minutes", "seconds", 60),
        ("days", "hours", 24),
        ("weeks", "days", 7),
    ),
    "zh": (
        ("公里", "米", 1000),
        ("米", "厘米", 100),
        ("千克", "克", 1000),
        ("升", "毫升", 1000),
        ("小时", "分钟", 60),
        ("分钟", "秒", 60),
        ("天", "小时", 24),
        ("周", "天", 7),
    ),
}
"""Language -> (large unit, small unit, how many of the small one make the large one)."""
_MIXED = 7
"""Of the units, so many are large enough for an amount in two units."""

PHRASINGS: dict[str, tuple[str, ...]] = {
    "en": (
        "How many {unit} are {amount}?",
        "Convert {amount} to {unit}.",
        "What is {amount} in {unit}?",
        "Write {amount} in {unit}.",
        "How many {unit} are there in {amount}?",
        "Express {amount} in {unit}.",
        "Change {amount} into {unit}.",
        "{amount}: how many {unit} is that?",
        "Give the number of {unit} in {amount}.",
    ),
    "zh": (
        "{amount}等于多少{unit}？",
        "{amount}是多少{unit}？",
        "把{amount}换算成{unit}。",
        "请将{amount}换算为{unit}。",
        "{amount}换算成{unit}是多少？",
        "请问{amount}合多少{unit}？",
        "{amount}有多少{unit}？",
        "请写出{amount}等于多少{unit}。",
    ),
}


@register_task("unit_conversion")
class UnitConversion(Skill):
    """To the smaller unit (1), to the larger unit (2), an amount in two units (3)."""

    family = "unit_conversion"
    languages = ("en", "zh")

    def keys(self) -> Sequence[int]:
        """Returns the split's numbers of large units."""
        return numbers_of(self.split, 2, 99)

    def make(self, key: int, choices: Choices) -> Made:
        """Chooses the units, at level 3 the second amount, and the phrasing."""
        units = UNITS[self.language]
        large, small, factor = choices.one(units[:_MIXED] if self.level == 3 else units)
        between, join = (" ", " and ") if self.language == "en" else ("", "")
        amount, unit, answer = f"{key}{between}{large}", small, key * factor
        if self.level == 2:
            amount, unit, answer = f"{key * factor}{between}{small}", large, key
        if self.level == 3:
            more = choices.one(numbers_of(self.split, 2, 23))
            amount, answer = f"{amount}{join}{more}{between}{small}", answer + more
        prompt = choices.one(PHRASINGS[self.language]).format(amount=amount, unit=unit)
        return Made(prompt, str(answer), keep=(large, small))
