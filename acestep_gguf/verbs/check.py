"""``acestep-gguf check``: do the decoders and towers of a bundle still answer as the best of them does?"""

import hashlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.check.compare import check_bundle
from acestep_gguf.check.page import html_page
from acestep_gguf.check.report import table
from acestep_gguf.errors import CheckpointError, UsageError
from acestep_gguf.storage.atomic_file import write_atomically
from acestep_gguf.verbs.demo import CHECKPOINT, read_questions

# About a person's own pictures; the bundled ones come with their own.
QUESTIONS: Final = ("Describe this image in detail.", "What is in this image?", "What text is in this image?")


def check(
    folder: Path,
    pictures: Sequence[Path],
    questions: Sequence[str],
    *,
    checkpoint: Path | None,
    max_tokens: int,
    as_json: bool,
    html: Path | None,
) -> None:
    """Print how far each decoder and tower of the bundle in ``folder`` is from the best one.

    Args:
        folder: of the bundle.
        pictures: to ask about; by default those that come with the demo checkpoint.
        questions: about each picture; by default a few of our own.
        checkpoint: what the bundle was made from, to compare with instead of the bundle's best.
        max_tokens: of an answer at most.
        as_json: print one JSON object, with the answers.
        html: file of a page with pictures and answers, to be written, too.

    Raises:
        UsageError: the page cannot be written.
        MissingPackageError: ``checkpoint`` needs a package that is not installed.
        AceStepError: see ``check_bundle``.
    """
    if html is not None and not html.parent.is_dir():
        raise UsageError(f"{html.parent} is not a folder: give another --html.")
    reference = None
    if checkpoint is not None:
        _check_is_its_checkpoint(folder, checkpoint)
        from acestep_gguf.check.reference import open_reference  # noqa: PLC0415 (torch, if it is there)

        reference = partial(open_reference, checkpoint, max_tokens=max_tokens)
    report = check_bundle(
        folder,
        _asked(pictures, questions),
        max_tokens=max_tokens,
        reference=reference,
        on_candidate=lambda name: print(f"asking {name}", file=sys.stderr),
    )
    if html is not None:
        try:
            write_atomically(html, [html_page(report).encode()])
        except OSError as error:
            raise UsageError(f"{html} cannot be written ({error.strerror}): give another --html.") from error
    print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() if as_json else table(report))


def _check_is_its_checkpoint(folder: Path, checkpoint: Path) -> None:
    try:
        config_sha256 = hashlib.sha256((checkpoint / "config.json").read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{checkpoint} has no config.json ({error.strerror}): give a checkpoint."
        ) from error
    if config_sha256 != Bundle.read(folder).source.config_sha256:
        raise UsageError(f"{folder} was not made from {checkpoint}: give its own checkpoint.")


def _asked(pictures: Sequence[Path], questions: Sequence[str]) -> list[tuple[Path, str]]:
    if pictures:
        return [(path, question) for path in pictures for question in questions or QUESTIONS]
    bundled = [(CHECKPOINT / asked.image, asked.question) for asked in read_questions(CHECKPOINT)]
    return [(path, question) for path, own in bundled for question in questions or (own,)]
