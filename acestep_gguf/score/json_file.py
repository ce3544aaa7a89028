"""A benchmark's JSON file, whole: SEED-Bench's has 9 MB, MathVista's 2."""

from pathlib import Path
from typing import Any, Final

import msgspec

from acestep_gguf.errors import BenchmarkError
from acestep_gguf.score.row import opened

MAX_JSON_BYTES: Final = 64 * 2**20


def json_objects(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        BenchmarkError: it cannot be read, is no JSON object, or is too large.
    """
    with opened(path) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise BenchmarkError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB: is it the official file?")
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BenchmarkError(f"{path} is no JSON object ({error}): fetch it again.") from error
