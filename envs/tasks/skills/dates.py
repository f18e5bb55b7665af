"""The skill of reckoning with days and dates, in English and Chinese."""

# ruff: noqa: RUF001 (Chinese has punctuation marks of its own)
from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.partition import numbers_of
from instructrec.envs.tasks.skills.base import Choices, Made, Skill

WEEKDAYS = {
    "en": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "zh": ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"),
}
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)

PHRASINGS: dict[tuple[str, int], tuple[str, ...]] = {
    ("en", 1): (
        "Today is {day}. What day of the week is it in {n} days?",
        "If today is {day}, what day is it in {n} days?",
        "What day of the week comes {n} days after {day}?",
        "It is {day}. Name the day of the week in {n} days.",
        "Which day of the week is {n} days after a {day}?",
        "{n} days after {day}: which day of the week is that?",
        "Starting on a {day}, which day of the week is reached after {n} days?",
        "Suppose that it is {day} now. Which day of the week is it {n} days later?",
    ),
    ("en", 2): (
        "What date is {n} days after {first}? Write it as YYYY-MM-DD.",
        "Add {n} days to {first} and write the date as YYYY-MM-DD.",
        "Which date comes {n} days after {first}? Use the form YYYY-MM-DD.",
        "Today is {first}. Write the date in {n} days as YYYY-MM-DD.",
        "{n} days after {first}: which date is that, as YYYY-MM-DD?",
        "Write as YYYY-MM-DD the date that is {n} days later than {first}.",
        "From {first}, go {n} days forward. Give the date as YYYY-MM-DD.",
        "If {first} is today, what is the date {n} days from now, as YYYY-MM-DD?",
    ),
    ("en", 3): (
        "How many days after {first} is {second}?",
        "{second} is how many days after {first}?",
        "How many days pass from {first} to {second}?",
        "How many days must be added to {first} to reach {second}?",
        "Count the days that {second} is later than {first}.",
        "By how many days is {second} later than {first}?",
        "Today is {first}. In how many days is {second}?",
        "What is the difference in days of {first} and {second}?",
    ),
    ("zh", 1): (
        "如果今天是{day}，{n}天后是星期几？",
        "今天是{day}。再过{n}天是星期几？",
        "假设今天是{day}，那么{n}天之后是星期几？",
        "从{day}算起，过{n}天是星期几？",
        "请问{day}过了{n}天是星期几？",
        "今天是{day}，请告诉我{n}天后是星期几。",
        "请算一算：今天是{day}，{n}天后是星期几？",
        "已知今天是{day}，请写出{n}天后是星期几。",
    ),
    ("zh", 2): (
        "{first}之后{n}天是哪一天？请写成YYYY-MM-DD。",
        "{first}再过{n}天是什么日期？用YYYY-MM-DD的格式回答。",
        "今天是{first}，{n}天后的日期是什么？请用YYYY-MM-DD的格式。",
        "请写出{first}之后{n}天的日期，格式为YYYY-MM-DD。",
        "从{first}起往后推{n}天，是哪一天？写成YYYY-MM-DD。",
        "在{first}上加{n}天，请用YYYY-MM-DD写出日期。",
        "如果今天是{first}，那么过{n}天是几月几日？请写成YYYY-MM-DD。",
        "请计算{first}过{n}天后的日期，按YYYY-MM-DD书写。",
    ),
    ("zh", 3): (
        "{first}到{second}相隔多少天？",
        "从{first}到{second}要过多少天？",
        "{first}和{second}相差几天？",
        "请计算{first}与{second}相差多少天。",
        "今天是{first}，再过多少天是{second}？",
        "{second}比{first}晚多少天？",
        "请问从{first}到{second}经过了几天？",
        "{first}加上多少天是{second}？",
    ),
}
"""Language and level -> phrasings."""


@register_task("date_reasoning")
class DateReasoning(Skill):
    """The day of the week n days on (1), the date n days on (2), the days between dates (3).

    Years (1900 to 2099) and numbers of days belong to the split.
    """

    family = "date_reasoning"
    languages = ("en", "zh")

    def keys(self) -> Sequence[int]:
        """Returns numbers of days (1) or years (2, 3)."""
        if self.level == 1:
            return numbers_of(self.split, 2, 99)
        return numbers_of(self.split, 1900, 2099)

    def make(self, key: int, choices: Choices) -> Made:
        """Chooses the day or date, the number of days and the phrasing."""
        if self.level == 1:
            return self._weekday(key, choices)
        first = date(key, 1 + choices.index(12), 1 + choices.index(28))
        days = choices.one(numbers_of(self.split, 2, 99))
        second = first + timedelta(days)
        prompt = choices.one(PHRASINGS[self.language, self.level]).format(
            first=self._written(first), second=self._written(second), n=days
        )
        answer = second.isoformat() if self.level == 2 else str(days)
        return Made(prompt, answer, keep=(*_MONTHS, "YYYY-MM-DD"))

    def _weekday(self, days: int, choices: Choices) -> Made:
        names = WEEKDAYS[self.language]
        today = choices.index(7)
        phrasing = choices.one(PHRASINGS[self.language, 1])
        answer = names[(today + days) % 7]
        return Made(phrasing.format(day=names[today], n=days), answer, keep=names)

    def _written(self, day: date) -> str:
        if self.language == "zh":
            return f"{day.year}年{day.month}月{day.day}日"
        return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"
