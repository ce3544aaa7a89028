"""``acestep-gguf verify``: whether a bundle is what conversion wrote, as a table or a JSON object."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from acestep_gguf.bundle.names import BUNDLE_FILE
from acestep_gguf.bundle.verify import BundleReport, DecoderComparison, FileReport, verify_bundle
from acestep_gguf.errors import BundleError

LINE: Final = "{:<36} {:>12}  {:>8}  {}"
ERROR_LINE: Final = "{:<8} {:<7} {:>7}  {:>8} {:>8} {:>8}  {}"

Compare = Callable[[], Sequence[DecoderComparison]]


def verify(folder: Path, *, quick: bool, compare: Compare | None, as_json: bool) -> None:
    """Print the findings about the bundle in ``folder``.

    ``compare`` compares its decoders with their checkpoint; it is called if the files are sound.

    Raises:
        BundleError: something is wrong; the message is the first problem.
    """
    if as_json:
        report = verify_bundle(folder, quick=quick)
        comparisons = compare() if compare and not report.problems else ()
        print(
            msgspec.json.format(msgspec.json.encode(_facts(folder, report, comparisons)), indent=2).decode()
        )
    else:
        print(LINE.format("file", "bytes", "seconds", "checked"))
        report = verify_bundle(folder, quick=quick, on_file=_print_file)
        for note in report.notes:
            print(f"note: {printable(note)}")
        if report.bundle_sha256:
            print(f"{BUNDLE_FILE} itself has the SHA-256 {report.bundle_sha256}")
        comparisons = compare() if compare and not report.problems else ()
        if comparisons:
            _print_comparisons(comparisons)
    problems = [*report.problems, *(problem for found in comparisons for problem in found.problems)]
    if problems:
        more = f" ({len(problems) - 1} more of this bundle)" if len(problems) > 1 else ""
        raise BundleError(printable(problems[0]) + more)


def printable(text: str) -> str:
    """``text`` on one line and without control characters: a stranger may have named the files."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _facts(folder: Path, report: BundleReport, comparisons: Sequence[DecoderComparison]) -> dict[str, Any]:
    return {
        "bundle": str(folder),
        "ok": not (report.problems or any(found.problems for found in comparisons)),
        **msgspec.to_builtins(report),
        "decoders": msgspec.to_builtins(comparisons),
    }


def _print_file(report: FileReport) -> None:
    state = "FAILED" if report.problems else ", ".join(report.checks)
    print(LINE.format(printable(report.file), report.bytes, f"{report.seconds:.2f}", state), flush=True)
    for problem in report.problems:
        print(f"  {printable(problem)}", flush=True)


def _print_comparisons(comparisons: Sequence[DecoderComparison]) -> None:
    print()
    print(ERROR_LINE.format("decoder", "type", "tensors", "mean", "worst", "limit", "worst tensor"))
    for found in comparisons:
        for of in found.errors:
            numbers = (f"{number:.4f}" for number in (of.mean, of.worst, of.limit))
            print(
                ERROR_LINE.format(found.ftype, of.qtype, of.n_tensors, *numbers, printable(of.worst_tensor))
            )
        for problem in found.problems:
            print(f"  {printable(problem)}")
