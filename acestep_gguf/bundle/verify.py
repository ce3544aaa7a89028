"""Whether a bundle is what conversion wrote: size, structure and hash of each file.

This needs only what the runtime needs; ``convert/compare.py`` compares decoders with their checkpoint.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Final

from acestep_gguf.bundle.decoder_info import check_vocabulary, decoder_info
from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.bundle.names import BUNDLE_FILE, LLAMA_FTYPE, DecoderFtype
from acestep_gguf.bundle.onnx_file import read_onnx
from acestep_gguf.bundle.prefill_info import check_prefill_file
from acestep_gguf.bundle.schema import Bundle, FileRecord, PrefillFile, VisionFile, check_file
from acestep_gguf.bundle.vision_info import check_graph
from acestep_gguf.errors import AceStepError, BundleError
from acestep_gguf.storage.unfinished import leftovers

MAX_NOTES: Final = 20

Check = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """What was checked in one file, in ``seconds``, and what is wrong with it; ``bytes`` as recorded."""

    file: str
    bytes: int
    checks: tuple[str, ...]
    seconds: float
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleReport:
    """The findings, file by file; ``notes`` name what does not make the bundle wrong.

    ``bundle_sha256`` is the hash of bundle.json, which is recorded nowhere: None if it cannot be read.
    """

    bundle_sha256: str | None
    files: tuple[FileReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """All problems, in the order in which they were found."""
        return tuple(problem for file in self.files for problem in file.problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class QtypeError:
    """What one qtype cost a decoder's tensors: RMS error over RMS of the weights, mean and worst.

    No sound tensor of this type has an error above ``limit``.
    """

    qtype: str
    n_tensors: int
    mean: float
    worst: float
    worst_tensor: str
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderComparison:
    """A decoder compared with its checkpoint."""

    ftype: DecoderFtype
    file: str
    errors: tuple[QtypeError, ...]
    problems: tuple[str, ...]


def verify_bundle(
    folder: Path, *, quick: bool = False, on_file: Callable[[FileReport], None] = lambda _: None
) -> BundleReport:
    """Check all files of the bundle in ``folder``; what is wrong is reported, not raised.

    Args:
        folder: folder of the bundle.
        quick: leave out the hashes, so that weights are not read.
        on_file: called with the report of each file as soon as it is checked.
    """
    reports: list[FileReport] = []

    def report(file: str, n_bytes: int, checks: dict[str, Check]) -> FileReport:
        reports.append(_run(file, n_bytes, checks))
        on_file(reports[-1])
        return reports[-1]

    path = folder / BUNDLE_FILE
    n_bytes = path.stat().st_size if os.path.isfile(path) else 0
    if report(BUNDLE_FILE, n_bytes, {"schema": lambda: _read(folder)}).problems:
        return BundleReport(bundle_sha256=None, files=tuple(reports))
    bundle = Bundle.read(folder)
    for record, structure in _records(folder, bundle):
        hashed = {} if quick else {"sha256": partial(_check_hash, folder, record)}
        report(
            record.file, record.bytes, {"size": partial(_check_size, folder, record), **structure, **hashed}
        )
    return BundleReport(
        bundle_sha256=_sha256(path), files=tuple(reports), notes=tuple(_notes(folder, bundle))
    )


def _records(folder: Path, bundle: Bundle) -> Iterator[tuple[FileRecord, dict[str, Check]]]:
    """The files of the bundle, each with the checks of its kind."""
    vocabularies: list[dict[str, bytes]] = []
    for ftype, decoder in bundle.decoders.files.items():
        yield decoder, {"header": partial(_check_decoder, folder / decoder.file, bundle, ftype, vocabularies)}
    if bundle.vision and bundle.image:
        for vision in bundle.vision.files.values():
            yield vision, {"graph": partial(_check_vision, folder, vision, bundle.image)}
            yield vision.data, {}
    for mmproj in bundle.mmproj.values():
        yield mmproj, {"header": partial(_check_mmproj, folder / mmproj.file)}
    if bundle.prefill:
        yield bundle.prefill, {"graph": partial(_check_prefill, folder, bundle.prefill)}
        yield bundle.prefill.data, {}
    if bundle.quality:
        yield bundle.quality, {}


def _run(file: str, n_bytes: int, checks: dict[str, Check]) -> FileReport:
    """Do the checks; after a wrong size the others would only say the same again."""
    started = perf_counter()
    problems: dict[str, str] = {}
    done = []
    for name, check in checks.items():
        if "size" not in problems:
            done.append(name)
            try:
                check()
            except AceStepError as error:
                problems[name] = str(error)
    return FileReport(
        file=file,
        bytes=n_bytes,
        checks=tuple(done),
        seconds=perf_counter() - started,
        problems=tuple(problems.values()),
    )


def _read(folder: Path) -> None:
    Bundle.read(folder)


def _check_size(folder: Path, record: FileRecord) -> None:
    path = check_file(folder, record)
    if not os.path.isfile(path):
        raise BundleError(f"{path} is not a file: copy the whole bundle, or convert again.")


def _check_hash(folder: Path, record: FileRecord) -> None:
    path = folder / record.file
    if _sha256(path) != record.sha256:
        raise BundleError(f"{path} is damaged (its SHA-256 is not the recorded one): copy it again.")


def _check_decoder(
    path: Path, bundle: Bundle, ftype: DecoderFtype, vocabularies: list[dict[str, bytes]]
) -> None:
    """The header, against itself and against bundle.json; ``vocabularies`` are known to be right."""
    header = read_gguf_header(path)
    decoder_info(header)
    # Decoders of a bundle share one vocabulary, and to check 152,064 tokens takes most of the time.
    shared = (
        "tokenizer.",
        "general.architecture",
        f"{header.metadata['general.architecture']}.embedding_length",
    )
    vocabulary = {key: bytes(value) for key, value in header.encoded.items() if key.startswith(shared)}
    if vocabulary not in vocabularies:
        check_vocabulary(header, bundle.prompt, bundle.image)
        vocabularies.append(vocabulary)
    recorded = {
        "general.file_type": LLAMA_FTYPE[ftype],
        "tokenizer.chat_template": bundle.prompt.chat_template,
    }
    # A file of others may lack both.
    for key, value in recorded.items() if not bundle.source.is_imported else ():
        if header.metadata.get(key) != value:
            raise BundleError(
                f"{header.path} is not the {ftype} decoder of this bundle (its {key} differs): copy it again."
            )


def _check_vision(folder: Path, record: VisionFile, image: ImageSpec) -> None:
    check_graph(read_onnx(folder / record.file), record, image)


def _check_prefill(folder: Path, record: PrefillFile) -> None:
    check_prefill_file(folder, record)


def _check_mmproj(path: Path) -> None:
    read_gguf_header(path)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): copy it again.") from error


def _notes(folder: Path, bundle: Bundle) -> Iterator[str]:
    """What lies in the folder and is not part of the bundle."""
    known = {BUNDLE_FILE, *(record.file for record in bundle.records())}
    unknown = sorted(path.name for path in folder.iterdir() if path.name not in known)
    left = {path.name for path in leftovers(folder)}
    for name in unknown[:MAX_NOTES]:
        yield f"{name} " + (
            "is left of an interrupted conversion: the same `convert` carries on with it."
            if name in left
            else "is not part of the bundle."
        )
    if len(unknown) > MAX_NOTES:
        yield f"{len(unknown) - MAX_NOTES} other files are not part of the bundle."
