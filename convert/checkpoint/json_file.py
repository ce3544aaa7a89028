"""JSON from strangers: bounded in size and depth, with each key once and finite numbers, in UTF-8."""

import json
from collections import Counter
from math import isfinite
from pathlib import Path
from typing import Any, Final

from acestep_gguf.errors import CheckpointError

# Qwen2's tokenizer.json, the largest one in a checkpoint, has 7 MB.
MAX_JSON_BYTES: Final = 100_000_000


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        CheckpointError: missing, too large, or not a JSON object.
    """
    return parse_json(read_text(path), path)


def read_text(path: Path) -> str:
    """The UTF-8 text in ``path``.

    Raises:
        CheckpointError: missing, too large, or not UTF-8.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: get the whole checkpoint.")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path} is larger than {MAX_JSON_BYTES} bytes: get an undamaged checkpoint."
            )
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): get an undamaged checkpoint.") from error


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """The JSON object ``text``; ``path`` is for the error.

    Raises:
        CheckpointError: not a JSON object, or a key stands twice in one object.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_unique_keys, parse_float=_finite, parse_constant=_refuse_constant
        )
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair cannot be encoded
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): get an undamaged checkpoint.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object: get an undamaged checkpoint.")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{key!r} stands twice in one object")
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text[:20]} is too large for a number")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
