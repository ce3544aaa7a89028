"""Whether an answer to a question of MathVista's is right, without asking a language model."""

import re
from typing import Final

from acestep_gguf.score import letters
from acestep_gguf.score.edit_distance import nearest
from acestep_gguf.score.item import Item

_LETTER_IN_PARENTHESES: Final = re.compile(r"\(([a-zA-Z])\)")
# A minus sign belongs to a number only if no digit is before it: "2007-2008" has two years.
_NUMBER: Final = re.compile(
    r"(?:(?<![0-9])[-−])?(?:(?:[0-9]{1,3}(?:,[0-9]{3}){1,6}(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
MAX_ANSWER_CHARS: Final = 20_000  # the end of a longer answer counts


def by_vlmevalkit(item: Item, answer: str) -> bool | None:
    """``post_check`` on the answer itself; None where a judge would be asked.

    That is of numbers wherever the answer is not just the right one, and where that is zero.
    """
    if item.extra["question_type"] == "multi_choice":
        letter = letters.by_vlmevalkit(answer, item.choices)
        return None if letter is None else letter == answer_letter(item)
    kind = {"integer": int, "float": float}.get(item.extra["answer_type"])
    if kind is None or item.answer is None:
        return None
    try:
        given, wanted = kind(answer), kind(item.answer)
    except ValueError:
        return None
    return True if given == wanted and given != 0 else None


def by_lmms_eval(item: Item, answer: str) -> bool | None:
    """``extract_answer`` with its judge left out, and ``normalize_extracted_answer``; None where it is asked.

    lmms-eval rounds to a precision that Parquet has as 1.0, which fails in Python, so that no answer with
    decimals is right there; here it is 1.
    """
    answer = answer.strip()
    extracted: str | None = None
    if not answer or (item.extra["question_type"] == "multi_choice" and answer in item.choices.values()):
        extracted = answer
    else:
        kind = {"integer": int, "float": float}.get(item.extra["answer_type"])
        try:
            extracted = str(kind(answer)) if kind is not None else None
        except ValueError:
            extracted = None
    return None if extracted is None else _is_right(item, extracted)


def by_own_rules(item: Item, answer: str) -> bool:
    """The option, else the last number or list, made comparable as MathVista's own tool does."""
    return _is_right(item, extract(item, answer))


def extract(item: Item, answer: str) -> str:
    """What an answer says in the end: a letter or an option, a number, a list, or all of it."""
    answer = answer.strip()[-MAX_ANSWER_CHARS:]
    if item.choices:
        if answer in item.choices.values():
            return answer
        letter = letters.by_vlmevalkit(answer, item.choices)
        return answer if letter is None or letter == letters.NO_OPTION else letter
    if item.extra["answer_type"] == "list":
        inside = answer[answer.rfind("[") + 1 :].partition("]")[0]
        return f"[{', '.join(number for part in inside.split(',') for number in _numbers(part))}]"
    numbers = _numbers(answer)
    if item.extra["answer_type"] in {"integer", "float"}:
        return numbers[-1] if numbers else ""
    return answer


def _numbers(text: str) -> list[str]:
    return [found.replace(",", "").replace("−", "-") for found in _NUMBER.findall(text)]


def normalized(item: Item, extracted: str) -> str | None:
    """As ``normalize_extracted_answer`` of MathVista's tool: the text of an option, or a rounded number."""
    if item.extra["question_type"] == "multi_choice":
        options = [*item.choices.values()]
        letter = _LETTER_IN_PARENTHESES.search(extracted)
        name = letter[1].upper() if letter else extracted.strip()
        return item.choices[name] if name in item.choices else options[nearest(name, options)]
    try:
        if item.extra["answer_type"] == "integer":
            return str(int(float(extracted)))
        if item.extra["answer_type"] == "float":
            return str(round(float(extracted), int(item.extra.get("precision", "0"))))
    except (ValueError, OverflowError):
        return None
    return extracted


def answer_letter(item: Item) -> str | None:
    """The letter of the right option: VLMEvalKit's TSV names it, elsewhere it is the one with the answer."""
    letters_with_it = (letter for letter, text in item.choices.items() if text == item.answer)
    return item.extra.get("answer_option") or next(letters_with_it, None)


def _is_right(item: Item, extracted: str) -> bool:
    found = normalized(item, extracted)
    return found is not None and item.answer is not None and found.strip() == item.answer.strip()
