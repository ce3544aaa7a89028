"""``acestep-gguf demo``: the demo checkpoint becomes a bundle and answers questions about three pictures."""

import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import BundleError, CheckpointError
from acestep_gguf.storage.cache_folder import cache_folder
from acestep_gguf.verbs.run import end_at_once_on_ctrl_c, print_chunks, statistics

CHECKPOINT: Final = Path(__file__).parent.parent / "demo"


class Question(msgspec.Struct, frozen=True):
    """One entry of questions.json; ``image`` is a path in the checkpoint's folder."""

    image: str
    question: str


def demo(folder: Path | None, convert: Callable[[Path, Path], object]) -> None:
    """Convert the demo checkpoint into ``folder``, unless it is there already, and answer its questions.

    Args:
        folder: of the bundle, by default one in the platform's cache folder, of its own for each checkpoint
            and each version of this software.
        convert: makes a bundle of a checkpoint, or leaves a bundle of the same checkpoint as it is.

    Raises:
        CheckpointError: the demo checkpoint is missing from this installation.
        BundleError: the folder cannot be written.
    """
    questions = read_questions(CHECKPOINT)
    bundle = folder if folder is not None else default_folder(CHECKPOINT)
    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"{bundle.parent} cannot be made ({error}): give a folder with --dir.") from error
    convert(CHECKPOINT, bundle)
    end_at_once_on_ctrl_c()
    with AceStep(bundle) as model:
        for question in questions:
            picture = CHECKPOINT / question.image
            print(f"\n{picture}\n> {question.question}")
            answer = print_chunks(model.stream(question.question, [picture]))
            print(statistics(answer))
    print(f'\nAsk more: acestep-gguf run {bundle} --image PICTURE "QUESTION"')


def read_questions(checkpoint: Path) -> Sequence[Question]:
    """The questions that come with the demo checkpoint."""
    try:
        return msgspec.json.decode((checkpoint / "questions.json").read_bytes(), type=list[Question])
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"the demo checkpoint is not installed ({error}): install again.") from error


def default_folder(checkpoint: Path) -> Path:
    """Where the bundle of ``checkpoint`` is kept, by its contents and by the version of this software."""
    digest = hashlib.sha256()
    for path in sorted(checkpoint.glob("*")):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    name = f"demo-{version('acestep-gguf')}-{digest.hexdigest()[:12]}"
    return cache_folder() / name
