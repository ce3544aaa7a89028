import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.bundle.verify import verify_bundle
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.errors import BundleError, UsageError
from acestep_gguf.quality import bundled
from acestep_gguf.quality.bundled import QUALITY_FILE, read_from_bundle, write_into_bundle
from acestep_gguf.quality.report import PictureQuestion, QualityReport
from tests.acestep_gguf.quality.reports import candidate


def report(picture: str = "/home/me/a.png") -> QualityReport:
    asked = (PictureQuestion(picture=picture, question="What?"),)
    return QualityReport(
        bundle="Tiny", asked=asked, candidates=(candidate("F32", "a"), candidate("Q8_0", "b"))
    )


def test_what_is_written_is_read_without_the_folders_of_pictures(bundle_copy: Path) -> None:
    assert read_from_bundle(bundle_copy, Bundle.read(bundle_copy)) is None
    write_into_bundle(bundle_copy, report())
    expected = replace(report(), asked=(PictureQuestion(picture="a.png", question="What?"),))
    assert read_from_bundle(bundle_copy, Bundle.read(bundle_copy)) == expected
    found = verify_bundle(bundle_copy)
    assert (found.problems, found.notes) == ((), ())
    assert QUALITY_FILE in [file.file for file in found.files]


def test_a_name_that_is_no_utf_8(bundle_copy: Path) -> None:
    write_into_bundle(bundle_copy, report(os.fsdecode(b"/a/\xff.png")))
    read = read_from_bundle(bundle_copy, Bundle.read(bundle_copy))
    assert read is not None
    assert read.asked[0].picture == "?.png"


def test_a_changed_report_is_found(bundle_copy: Path) -> None:
    write_into_bundle(bundle_copy, report())
    path = bundle_copy / QUALITY_FILE
    path.write_text(path.read_text().replace("Q8_0", "Q9_0"))
    assert "SHA-256" in verify_bundle(bundle_copy).problems[0]
    path.unlink()
    with pytest.raises(BundleError, match="is missing"):
        read_from_bundle(bundle_copy, Bundle.read(bundle_copy))


@pytest.mark.parametrize(
    "text", ["{}", "[1]", "\xff", "[" * 10_000, '{"bundle": "x", "asked": [], "candidates": []}']
)
def test_a_report_of_somebody_else(bundle_copy: Path, text: str) -> None:
    record = write_into_bundle(bundle_copy, report())
    data = text.encode("latin-1")
    (bundle_copy / QUALITY_FILE).write_bytes(data)
    with pytest.raises(BundleError, match="measure again"):
        read_from_bundle(
            bundle_copy, replace(Bundle.read(bundle_copy), quality=replace(record, bytes=len(data)))
        )


def test_a_report_that_is_too_large(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_into_bundle(bundle_copy, report())
    monkeypatch.setattr(bundled, "MAX_BYTES", 100)
    with pytest.raises(BundleError, match="too large"):
        read_from_bundle(bundle_copy, Bundle.read(bundle_copy))
    with pytest.raises(UsageError, match="larger than"):
        write_into_bundle(bundle_copy, report())


def test_a_conversion_keeps_the_report_unless_its_file_is_gone(
    tiny_checkpoint: Path, bundle_copy: Path
) -> None:
    record = write_into_bundle(bundle_copy, report())
    assert convert_checkpoint(tiny_checkpoint, bundle_copy, ("F16",)).quality == record
    (bundle_copy / QUALITY_FILE).unlink()
    assert convert_checkpoint(tiny_checkpoint, bundle_copy, ("Q5_K_M",)).quality is None


def test_a_reader_that_does_not_know_it_reads_the_bundle(bundle_copy: Path) -> None:
    before = json.loads((bundle_copy / "bundle.json").read_text())
    write_into_bundle(bundle_copy, report())
    after = json.loads((bundle_copy / "bundle.json").read_text())
    assert after.pop("quality")["file"] == QUALITY_FILE
    assert {**before, "quality": None} == {**after, "quality": None}  # min_reader_version, too


def test_a_report_that_cannot_be_written_leaves_the_bundle_as_it_was(bundle_copy: Path) -> None:
    (bundle_copy / QUALITY_FILE).mkdir()
    before = (bundle_copy / "bundle.json").read_bytes()
    with pytest.raises(BundleError, match="cannot be written to"):
        write_into_bundle(bundle_copy, report())
    assert (bundle_copy / "bundle.json").read_bytes() == before
