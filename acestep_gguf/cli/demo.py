"""``acestep-gguf demo``: the demo checkpoint becomes a bundle and answers questions about three pictures."""

from pathlib import Path
from typing import Annotated

import typer

from acestep_gguf.cli.options import path
from acestep_gguf.cli.terminal import print_chunks, statistics
from acestep_gguf.errors import BundleError


def demo(
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir", parser=path, help="Folder for the bundle. By default one in your cache folder."
        ),
    ] = None,
) -> None:
    """Convert a small model, and ask it about pictures.

    Model and pictures come with this software.
    """
    from acestep_gguf.demo.questions import CHECKPOINT

    convert_and_ask(CHECKPOINT, default_folder(CHECKPOINT) if directory is None else directory)


def convert_and_ask(checkpoint: Path, folder: Path) -> None:
    """Make ``checkpoint`` a bundle in ``folder``, unless it is there already, and ask it its questions."""
    from acestep_gguf.bundle.library import is_bundle
    from acestep_gguf.cli.progress import display
    from acestep_gguf.convert import convert_checkpoint
    from acestep_gguf.demo.questions import read_questions
    from acestep_gguf.engine.engine import AceStep

    questions = read_questions(checkpoint)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"{folder.parent} cannot be made ({error}): give a folder with --dir.") from error
    with display(log_json=False) as show:
        # One that is there keeps its name.
        convert_checkpoint(checkpoint, folder, name=None if is_bundle(str(folder)) else "Demo", on_event=show)
    with AceStep(folder) as model:
        for question in questions:
            picture = checkpoint / question.image
            print(f"\n{picture}\n> {question.question}")
            answer = print_chunks(model.stream(question.question, [picture]))
            print(statistics(answer))
    print(f'\nAsk more: acestep-gguf run {folder} --image PICTURE "QUESTION"')


def default_folder(checkpoint: Path) -> Path:
    """Where the bundle of ``checkpoint`` is kept, by its contents and by the version of this software."""
    import hashlib
    from importlib.metadata import version

    from acestep_gguf.storage.cache_folder import cache_folder

    digest = hashlib.sha256()
    for file in sorted(checkpoint.glob("*")):
        if file.is_file():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    name = f"demo-{version('acestep-gguf')}-{digest.hexdigest()[:12]}"
    return cache_folder() / name
