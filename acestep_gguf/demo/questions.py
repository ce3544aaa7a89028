"""Where the demo checkpoint is, and the questions that come with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from acestep_gguf.errors import CheckpointError

CHECKPOINT: Final = Path(__file__).parent


class DemoQuestion(msgspec.Struct, frozen=True):
    """One entry of questions.json; ``image`` is a path in the checkpoint's folder."""

    image: str
    question: str


def read_questions(checkpoint: Path) -> Sequence[DemoQuestion]:
    """The questions in the folder ``checkpoint``.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    try:
        return msgspec.json.decode((checkpoint / "questions.json").read_bytes(), type=list[DemoQuestion])
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"the demo checkpoint is not installed ({error}): install again.") from error
