"""``acestep-gguf mixture``: the type of each tensor that loses least on pictures, at a given size."""

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acestep_gguf.bundle.names import FTYPES, Ftype, ftype_from
from acestep_gguf.cli.options import AsJson, BundleFolder, Threads, filled, path
from acestep_gguf.cli.quality import N_PREDICT, QUESTIONS
from acestep_gguf.cli.terminal import json_text
from acestep_gguf.errors import UsageError
from acestep_gguf.sizes import parse_size

if TYPE_CHECKING:
    from acestep_gguf.quantize.mixture import MixtureReport


def mixture(
    bundle: BundleFolder,
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURES...",
            help="Files, folders, quoted patterns, .jsonl or .csv tables as of `batch`: as those to come.",
        ),
    ],
    *,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", parser=path, help="Recipe to write, for --tensor-type-file."),
    ],
    size: Annotated[
        str,
        typer.Option(
            metavar="SIZE", help="Of the decoder's file at most: that of a type, or bytes such as 4.5GB."
        ),
    ] = "Q4_K_M",
    question: Annotated[
        list[str] | None,
        typer.Option(
            parser=filled, metavar="QUESTION", help="What to ask about each picture; repeat for more."
        ),
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(parser=path, metavar="FILE", help="Importance matrix to quantize with.")
    ] = None,
    n_predict: Annotated[
        int, typer.Option("-n", "--n-predict", help="Length of an answer in tokens at most.")
    ] = N_PREDICT,
    layers_together: Annotated[
        int, typer.Option(help="Layers that get the same types: more of them are faster, and worse.")
    ] = 1,
    swaps: Annotated[
        int, typer.Option(help="Decoders to measure at the end, to improve on the choice.")
    ] = 40,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Search the mixture of types that loses least on pictures.

    The bundle needs a decoder in F16, BF16 or F32: what loses least is nearest to that one's answers.
    """
    from acestep_gguf.quantize.importance.samples import picture_samples
    from acestep_gguf.quantize.mixture import MixtureRequest, search_mixture
    from acestep_gguf.storage.atomic_file import write_atomically

    folder = output.absolute().parent
    if os.path.isdir(output) or not os.access(folder, os.W_OK):
        raise UsageError(f"{output} cannot be written: give another --output.")
    request = MixtureRequest(
        size=_size(size),
        imatrix=imatrix,
        max_tokens=n_predict,
        layers_together=layers_together,
        swaps=swaps,
        threads=threads,
    )
    samples = picture_samples(pictures, question or QUESTIONS)
    if any(len(sample.images) != 1 for sample in samples):
        raise UsageError("each question is about one picture here: give a table of such.")
    asked = [(sample.images[0], sample.prompt) for sample in samples]
    with tempfile.TemporaryDirectory(prefix=".mixture-", dir=folder) as scratch:
        report = search_mixture(
            bundle,
            asked,
            request,
            Path(scratch),
            on_measured=lambda line: print(line, file=sys.stderr, flush=True),
        )
    write_atomically(output, [report.mixture.recipe.encode()])
    print(json_text(figures(report)) if as_json else summary(report, output))


def figures(report: "MixtureReport") -> dict[str, Any]:
    """The report as JSON has it."""
    found = {
        name: {"n_bytes": measured.n_bytes, "kl_divergence": measured.kl_divergence}
        for name, measured in (("mixture", report.mixture), ("plain", report.plain))
        if measured
    }
    types = {name: qtype.name for name, qtype in report.mixture.types.items()}
    return {**found, "types": types, "max_bytes": report.max_bytes, "n_measured": report.n_measured}


def summary(report: "MixtureReport", output: Path) -> str:
    """What was found, beside the plain recipe of the same size, if there is one."""
    rows = [("mixture", report.mixture), *([("plain", report.plain)] if report.plain else [])]
    lines = [f"{name:<8} {found.n_bytes:>16,} B  KLD {found.kl_divergence:.3e}" for name, found in rows]
    lines.append(f"{output} is for convert and quantize --tensor-type-file; {report.n_measured} measured.")
    return "\n".join(lines)


def _size(text: str) -> int | Ftype:
    if text.upper() in FTYPES:
        return ftype_from(text)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else parse_size(text, "--size")
