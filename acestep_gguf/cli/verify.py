"""``acestep-gguf verify``: whether a bundle is what conversion wrote, as a table or a JSON object."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from acestep_gguf.bundle.names import BUNDLE_FILE
from acestep_gguf.cli.options import AsJson, BundleFolder, path
from acestep_gguf.cli.terminal import for_stdout, json_text, printable
from acestep_gguf.errors import BundleError, CheckpointError

if TYPE_CHECKING:
    from acestep_gguf.bundle.verify import BundleReport, DecoderComparison, FileReport

LINE: Final = "{:<36} {:>12}  {:>8}  {}"
ERROR_LINE: Final = "{:<8} {:<7} {:>7}  {:>8} {:>8} {:>8}  {}"


def verify(
    bundle: BundleFolder,
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Check sizes, headers and graphs, but no hashes.")
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            parser=path, help="Also compare each tensor with the checkpoint that the bundle was made from."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a bundle is complete and undamaged."""
    from acestep_gguf.bundle.verify import verify_bundle

    if checkpoint is not None and not checkpoint.is_dir():  # before files are hashed for minutes
        raise CheckpointError(f"{checkpoint} is not a folder: give the checkpoint of this bundle.")
    if as_json:
        report = verify_bundle(bundle, quick=quick)
    else:
        print(LINE.format("file", "bytes", "seconds", "checked"))
        report = verify_bundle(bundle, quick=quick, on_file=_print_file)
        for note in report.notes:
            print(f"note: {printable(note)}")
        if report.bundle_sha256:
            print(f"{BUNDLE_FILE} itself has the SHA-256 {report.bundle_sha256}")
    comparisons: Sequence[DecoderComparison] = ()
    if checkpoint is not None and not report.problems:
        from acestep_gguf.convert.compare import compare_with_checkpoint

        comparisons = compare_with_checkpoint(bundle, checkpoint)
    if as_json:
        print(json_text(_facts(bundle, report, comparisons)))
    elif comparisons:
        _print_comparisons(comparisons)
    problems = [*report.problems, *(problem for found in comparisons for problem in found.problems)]
    if problems:
        more = f" ({len(problems) - 1} more of this bundle)" if len(problems) > 1 else ""
        raise BundleError(printable(problems[0]) + more)
    if not as_json:
        print(f"{for_stdout(str(bundle))} is whole: {len(report.files)} files")


def _facts(
    folder: Path, report: "BundleReport", comparisons: "Sequence[DecoderComparison]"
) -> dict[str, Any]:
    import msgspec

    return {
        "bundle": str(folder),
        "ok": not (report.problems or any(found.problems for found in comparisons)),
        **msgspec.to_builtins(report),
        "decoders": msgspec.to_builtins(comparisons),
    }


def _print_file(report: "FileReport") -> None:
    state = "FAILED" if report.problems else ", ".join(report.checks)
    print(LINE.format(printable(report.file), report.bytes, f"{report.seconds:.2f}", state), flush=True)
    for problem in report.problems:
        print(f"  {printable(problem)}", flush=True)


def _print_comparisons(comparisons: "Sequence[DecoderComparison]") -> None:
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
