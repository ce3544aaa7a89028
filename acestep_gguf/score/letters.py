"""Which option an answer picks, by two harnesses: a letter, or None where their judges would be asked."""

from collections.abc import Mapping
from typing import Final

NO_OPTION: Final = "Z"  # a letter of no option: the answer counts as wrong

# ---- VLMEvalKit: can_infer in utils/matching_util.py, as of 0.0.20 ---------------------------------------

_SPACES_INSTEAD: Final = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_API_FAILED: Final = "Failed to obtain answer via API"
_REFUSALS: Final = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_LAST_WORDS: Final = 4


def by_vlmevalkit(answer: str, choices: Mapping[str, str]) -> str | None:
    """The only letter among the words, if it is one of the last four; else the only option's text within."""
    return _letter_of_vlmevalkit(answer, choices) or _text_of_vlmevalkit(answer, choices)


def _letter_of_vlmevalkit(answer: str, choices: Mapping[str, str]) -> str | None:
    if _API_FAILED in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return NO_OPTION
    words = answer.translate(_SPACES_INSTEAD).split()
    letters = set(words) & choices.keys()
    if not letters:
        return NO_OPTION if NO_OPTION in words else None
    if len(letters) > 1:
        return None
    (letter,) = letters
    return letter if words.index(letter) >= len(words) - _LAST_WORDS else None


def _text_of_vlmevalkit(answer: str, choices: Mapping[str, str]) -> str | None:
    answer = answer.lower()
    if len(answer) > 2 * sum(map(len, choices.values())):
        return None
    return _only_text_within(answer, choices)


def _only_text_within(answer: str, choices: Mapping[str, str]) -> str | None:
    found = [letter for letter, text in choices.items() if text.lower() in answer]
    return found[0] if len(found) == 1 else None


# ---- lmms-eval: MMBench_Evaluator and extract_mcq_answer, as of 0.7.3 ------------------------------------

_LETTERS: Final = "ABCDE"
_OPTIONS: Final = "ABCD"
_NOTHING: Final = "nan"  # the text of an option that a question has not, in lmms-eval's data set
# What may stand around a letter, the first that is around just one of them.
_AROUND: Final = (
    *(("", ""), ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ").")),
    *((":", ""), (":", ","), (":", "."), (":", ")"), (":", ").")),
)
_STRIPPED: Final = ",.!?;:'\""
_PHRASES: Final = (
    *(f"{start} is" for start in ("the answer", "answer", "the correct answer", "correct answer")),
    *(f"{start} is" for start in ("the best answer", "best answer", "the correct option", "correct option")),
    *(f"{start} is" for start in ("the best option", "best option", "the choice", "choice")),
    *(f"{start} is" for start in ("the correct choice", "correct choice", "my answer", "my choice")),
    *("i choose", "i select", "i pick"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
# Of several ways in which an answer names letters the one with the most counts, then the last letter.
_START, _END, _PHRASE, _ANYWHERE = 10, 9, 7, 0
_WRITTEN: Final = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))


def by_lmms_eval(answer: str, choices: Mapping[str, str]) -> str | None:
    """Of mmbench_en_dev_static: a letter among the words, the only option's text within, else any letter."""
    answer = answer.strip()
    options = {letter: choices.get(letter, _NOTHING) for letter in _OPTIONS}
    return (
        _letter_of_lmms_eval(answer)
        or _only_text_within(answer.lower(), options)
        or most_credible(answer, options)
    )


def _letter_of_lmms_eval(answer: str) -> str | None:
    if _API_FAILED in answer:
        return None
    words = answer.split()
    for before, after in _AROUND:
        letters = [letter for letter in _LETTERS if f"{before}{letter}{after}" in words]
        alone = not before and not after
        # "A" may be an article, in which case no letter without marks counts.
        if len(letters) == 1 and not (alone and "A" in words and len(words) > 3):
            return letters[0]
    return None


def most_credible(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer names in the way that promises most (``extract_mcq_answer``)."""
    stripped = answer.strip()
    for mark in _STRIPPED:
        stripped = stripped.strip(mark)
    text = f" {stripped} "
    stripped = text.strip()
    found: list[tuple[int, int, str]] = []  # how credible, where, which
    for form, credible in _WRITTEN:
        found += [
            (credible, text.rfind(form.format(one)), one) for one in options if form.format(one) in text
        ]
    lowered = text.lower()
    for phrase in _PHRASES:
        if (at := lowered.find(phrase)) >= 0:
            after = at + len(phrase)
            found += [(_PHRASE, text.find(one, after), one) for one in options if text.find(one, after) >= 0]
    for one in options:
        if stripped.startswith(one) and not stripped[1:2].isalpha():
            found.append((_START, 0, one))
    for one in options:
        if stripped.endswith(one) and not stripped[-2:-1].isalpha():
            found.append((_END, len(text) - 1, one))
    if not found:
        found = [(_ANYWHERE, text.rfind(one), one) for one in options if one in text]
    return max(found, key=lambda candidate: candidate[:2])[2] if found else None


def first_character(answer: str) -> str:
    """What lmms-eval's seedbench takes for the letter, in upper case."""
    return answer.strip()[:1].upper()
