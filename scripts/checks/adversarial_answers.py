"""Answers that rules may read in several ways: at least 300 of each kind of question."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final

from acestep_gguf.score.item import Item

YES_NO_WORDS: Final = (
    *("yes", "no", "Yes", "NO", "y", "N", "yes no", "no, yes", "not", "Not yes", "know", "nothing", "nope"),
    *("yesterday", "none", "yesno", "", "maybe", "ja", "noo", "It is", "true"),
)
YES_NO_FORMS: Final = (
    *("{}", "{}.", " {}", "    {}", "({})", "The answer is {}", "{}, because it is", "{}!", "**{}**", "{}/x"),
    *("1,000 {}", "...{}", "{}\n", '"{}"', "Answer:{}", "{} - sure", "x{}"),
)
OPTION_FORMS: Final = (
    *(
        "{}",
        "{}.",
        "({})",
        "{})",
        " {} ",
        "**{}**",
        "Answer: {}",
        "The answer is {}.",
        "Not {}",
        "{} I think",
    ),
    *("{} because it is there, as everybody sees", "A {}", "I choose {}", "the best option is {}!", "{}\n"),
    *("It's {}", "[{}]", "{}:", '"{}"', "option {}, not Z", "정답은 {}", "1. {}", "{}/{}"),
)
OPTION_WORDS: Final = (
    "A",
    "B",
    "C",
    "D",
    "E",
    "Z",
    "b",
    "A or B",
    "A B C D",
    "AB",
    "",
    "banana",
    "nan",
    "None",
)
NUMBER_FORMS: Final = (
    *(
        "{}",
        "{} ",
        "{}.",
        "{} cm",
        "about {}",
        "{}.0",
        "The answer is {}",
        "= {}",
        "-{}",
        "{}%",
        "${}",
        "[{}]",
    ),
    *("{}, I think", "12 + 1 = {}", "{} or 7", "({})", "{:>400}", "{}e0", "0{}", "1_{}"),
)


def answers_of(name: str, items: Sequence[Item], count: int) -> list[str]:
    """The ``count``-th answer for each item, such that all kinds have their turn."""
    kinds = {"mme": _yes_no, "mmbench": _options, "seedbench": _options, "mathvista": _mathvista}[name]
    found = []
    for place, item in enumerate(items):
        all_of_item = [*kinds(item)]
        found.append(all_of_item[(place + count * len(items)) % len(all_of_item)])
    return found


def _yes_no(_: Item) -> Iterator[str]:
    for form, word in product(YES_NO_FORMS, YES_NO_WORDS):
        yield form.format(word)


def _options(item: Item) -> Iterator[str]:
    texts = [*item.choices.values()]
    words = (*OPTION_WORDS, *texts, texts[0].upper(), f"{texts[0]} or {texts[-1]}", texts[0][:-1])
    for form, word in product(OPTION_FORMS, words):
        yield form.replace("{}", word)


def _mathvista(item: Item) -> Iterator[str]:
    if item.choices:
        yield from _options(item)
        return
    right = item.answer or ""
    numbers = (right, right.strip("[]"), "0", "1234567", "1,234", "nan", "inf", "fourteen", "", "½")
    more = ("3", "7.5", right.replace(", ", ","), right.replace(", ", " and "), f"{right}0", "-1")
    for form, number in product(NUMBER_FORMS, (*numbers, *more)):
        yield form.format(number)
