"""The report that a bundle carries of itself: quality.json, what ``quality --json`` prints."""

import hashlib
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Final

import msgspec

from acestep_gguf.bundle.schema import Bundle, FileRecord, check_file
from acestep_gguf.errors import BundleError, UsageError
from acestep_gguf.quality.report import QualityReport
from acestep_gguf.storage.atomic_file import write_atomically

QUALITY_FILE: Final = "quality.json"
MAX_BYTES: Final = 16 * 2**20


def write_into_bundle(folder: Path, report: QualityReport) -> FileRecord:
    """Put ``report`` into the bundle in ``folder``, in the place of one that is there.

    Of the pictures it keeps the names, not the folders that they were in. After a kill the bundle has the
    new report or none.

    Raises:
        BundleError: it is no bundle, or cannot be written to.
        UsageError: the report is too large.
    """
    pictures = tuple(replace(asked, picture=_name(asked.picture)) for asked in report.asked)
    text = msgspec.json.format(msgspec.json.encode(replace(report, asked=pictures)), indent=2) + b"\n"
    if len(text) > MAX_BYTES:
        raise UsageError(f"the report is larger than {MAX_BYTES >> 20} MiB: ask less.")
    record = FileRecord(file=QUALITY_FILE, bytes=len(text), sha256=hashlib.sha256(text).hexdigest())
    bundle = Bundle.read(folder)
    try:
        if bundle.quality:
            replace(bundle, quality=None).write(folder)
        write_atomically(folder / QUALITY_FILE, [text])
        replace(bundle, quality=record).write(folder)
    except OSError as error:
        raise BundleError(
            f"{folder} cannot be written to ({error.strerror}): check permissions and free space."
        ) from error
    return record


def read_from_bundle(folder: Path, bundle: Bundle) -> QualityReport | None:
    """The report that ``bundle``, in ``folder``, carries; None if it has none.

    Raises:
        BundleError: it is missing or damaged.
    """
    if bundle.quality is None:
        return None
    path = check_file(folder, bundle.quality)
    if bundle.quality.bytes > MAX_BYTES:
        raise BundleError(f"{path} is too large to be a report: measure again.")
    try:
        report = msgspec.json.decode(path.read_bytes(), type=QualityReport)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read ({error}): copy it again, or measure again.") from error
    if not report.candidates:
        raise BundleError(f"{path} is empty: measure again.")
    return report


def _name(picture: str) -> str:
    """Without folders, and in UTF-8, which not every name of a file is."""
    return PurePath(picture).name.encode(errors="replace").decode()
