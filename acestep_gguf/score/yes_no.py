"""Which of yes and no an answer says, by three tools whose published figures differ for that."""

import re
from typing import Final, Literal

YesNo = Literal["Yes", "No"]

# VLMEvalKit's process_punctuation, as of 0.0.20. It passes a flag where a count belongs: 32 points at most.
_PUNCTUATION: Final = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER: Final = re.compile(r"\d,\d")
_POINT_OUTSIDE_NUMBER: Final = re.compile(r"(?<!\d)\.(?!\d)")
_MOST_POINTS: Final = int(re.UNICODE)


def by_vlmevalkit(answer: str) -> YesNo | None:
    """One of the words "yes" and "no", anywhere, without the other (``YOrN_Extraction``)."""
    words = set(_without_punctuation(answer.lower()).split())
    said: list[YesNo] = [word for word in ("Yes", "No") if word.lower() in words]
    return said[0] if len(said) == 1 else None


def _without_punctuation(text: str) -> str:
    """A mark becomes nothing if a space is beside one like it anywhere in the text, else a space."""
    has_comma_in_number = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or has_comma_in_number else " ")
    return _POINT_OUTSIDE_NUMBER.sub("", cleaned, count=_MOST_POINTS)


def by_official_tool(answer: str) -> YesNo | None:
    """Of "yes", else "no", among the first four characters (MME's ``calculation.py``)."""
    return _of_start(answer.lower())


def by_lmms_eval(answer: str) -> YesNo | None:
    """The same without points and spaces around it, or "y" or "n" alone (``parse_pred_ans``)."""
    text = answer.lower().strip().replace(".", "")
    return _of_start({"y": "yes", "n": "no"}.get(text, text))


def _of_start(text: str) -> YesNo | None:
    start = text[:4]
    return "Yes" if "yes" in start else "No" if "no" in start else None
