"""``acestep-gguf quality``: do the decoders and towers of a bundle still answer as the best of them does?"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from acestep_gguf.cli.options import AsJson, BundleFolder, Threads, filled, path
from acestep_gguf.cli.pictures import pictures_in_folders
from acestep_gguf.cli.terminal import json_text
from acestep_gguf.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from acestep_gguf.quality.report import QualityReport, TextReport

Report = Annotated[
    bool, typer.Option("--report", help="Put the figures into the bundle, where `info` shows them.")
]

N_PREDICT: Final = 64
# About a person's own pictures; the bundled ones come with their own.
QUESTIONS: Final = ("Describe this image in detail.", "What is in this image?", "What text is in this image?")


def quality(
    bundle: BundleFolder,
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=path, metavar="[PICTURE]...", help="Pictures, or folders of them. By default the demo's."
        ),
    ] = None,
    *,
    question: Annotated[
        list[str] | None,
        typer.Option(
            *("-p", "--prompt", "--question"),
            parser=filled,
            metavar="QUESTION",
            help="What to ask about each picture; repeat. By default three general questions.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            parser=path, help="Compare with this checkpoint in transformers instead of the bundle's best."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            parser=path,
            metavar="FILE",
            help="Compare the decoders on this text instead, as llama-perplexity.",
        ),
    ] = None,
    ctx_size: Annotated[
        int | None,
        typer.Option("-c", "--ctx-size", help="Tokens of each window of the text, by default 512."),
    ] = None,
    chunks: Annotated[
        int | None, typer.Option(help="Windows of the text to read at most, by default all.")
    ] = None,
    n_predict: Annotated[
        int, typer.Option("-n", "--n-predict", help="Length of an answer in tokens at most.")
    ] = N_PREDICT,
    html: Annotated[
        Path | None,
        typer.Option(parser=path, metavar="FILE", help="Also write a page with pictures and answers."),
    ] = None,
    report: Report = False,
    as_json: AsJson = False,
    threads: Threads = None,
) -> None:
    """Measure what quantizations of a bundle cost.

    All decoders and towers are asked the same, or all decoders read the same text, and it is shown how far
    each is from the best of them.
    """
    from acestep_gguf.quality.page import html_page
    from acestep_gguf.storage.atomic_file import write_atomically

    if html is not None:
        _check_can_be_written(html)
    if text is None and (ctx_size, chunks) != (None, None):
        raise UsageError("--ctx-size and --chunks say how a text is read: give --text, too.")
    if text is None:
        measured: QualityReport | TextReport = _on_pictures(
            bundle, _asked(pictures or (), question or ()), checkpoint, n_predict, threads, in_bundle=report
        )
    elif pictures or question or checkpoint is not None or report:
        raise UsageError(
            "--text takes the place of pictures, --question, --checkpoint and --report: leave them out."
        )
    else:
        measured = _on_text(bundle, text, ctx_size, chunks, threads)
    if html is not None:
        try:
            write_atomically(html, [html_page(measured).encode(errors="replace")])
        except OSError as error:
            raise UsageError(f"{html} cannot be written ({error.strerror}): give another --html.") from error
    print(json_text(measured) if as_json else _lines(measured))


def add_report(bundle: Path) -> str:
    """Measure on the demo's pictures, put the figures into ``bundle``, and give them as a table."""
    return _lines(_on_pictures(bundle, _asked((), ()), None, N_PREDICT, None, in_bundle=True))


def _on_pictures(
    bundle: Path,
    asked: Sequence[tuple[Path, str]],
    checkpoint: Path | None,
    n_predict: int,
    n_threads: int | None,
    *,
    in_bundle: bool,
) -> "QualityReport":
    from functools import partial

    from acestep_gguf.bundle.schema import Bundle
    from acestep_gguf.quality.bundled import write_into_bundle
    from acestep_gguf.quality.compare import measure_quality

    if Bundle.read(bundle).vision is None:
        raise UsageError(f"{bundle} reads no pictures: compare its decoders on a text, with --text FILE.")
    reference = None
    if checkpoint is not None:
        _check_is_its_checkpoint(bundle, checkpoint)
        from acestep_gguf.quality.reference import open_reference  # torch, if it is there

        reference = partial(open_reference, checkpoint, max_tokens=n_predict)
    measured = measure_quality(
        bundle,
        asked,
        max_tokens=n_predict,
        n_threads=n_threads,
        reference=reference,
        on_candidate=_say("asking"),
    )
    if in_bundle:
        write_into_bundle(bundle, measured)
    return measured


def _on_text(
    bundle: Path, text: Path, n_ctx: int | None, chunks: int | None, n_threads: int | None
) -> "TextReport":
    from acestep_gguf.llama.text_chunks import read_text
    from acestep_gguf.quality.text import N_CTX, measure_text

    read = read_text(text)
    n_ctx = N_CTX if n_ctx is None else n_ctx
    return measure_text(
        bundle,
        read,
        n_ctx=n_ctx,
        max_windows=chunks,
        n_threads=n_threads,
        on_candidate=_say("reading with"),
    )


def _lines(measured: "QualityReport | TextReport") -> str:
    from acestep_gguf.quality.table import tables

    return "\n\n".join(table.lines() for table in tables(measured))


def _say(does: str) -> Callable[[str], None]:
    return lambda name: print(f"{does} {name}", file=sys.stderr)


def _check_can_be_written(html: Path) -> None:
    """Before anything is asked, which can take long."""
    if not os.path.isdir(html.parent):
        raise UsageError(f"{html.parent} is not a folder: give another --html.")
    if os.path.isdir(html) or not os.access(html.parent, os.W_OK):
        raise UsageError(f"{html} is a folder, or its folder is write-protected: give another --html.")


def _check_is_its_checkpoint(folder: Path, checkpoint: Path) -> None:
    import hashlib

    from acestep_gguf.bundle.schema import Bundle

    try:
        config_sha256 = hashlib.sha256((checkpoint / "config.json").read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{checkpoint} has no config.json ({error.strerror}): give a checkpoint."
        ) from error
    if config_sha256 != Bundle.read(folder).source.config_sha256:
        raise UsageError(f"{folder} was not made from {checkpoint}: give its own checkpoint.")


def _asked(pictures: Sequence[Path], questions: Sequence[str]) -> list[tuple[Path, str]]:
    from acestep_gguf.demo.questions import CHECKPOINT, read_questions
    from acestep_gguf.vision.image_file import opened_file

    if pictures:
        pictures = [Path(picture) for picture in pictures_in_folders(map(str, pictures))]
        for picture in pictures:  # before a tower is loaded
            with opened_file(picture):
                pass
        return [(path, question) for path in pictures for question in questions or QUESTIONS]
    bundled = [(CHECKPOINT / asked.image, asked.question) for asked in read_questions(CHECKPOINT)]
    return [(path, question) for path, own in bundled for question in questions or (own,)]
