"""Whether our imatrix files are llama-imatrix's, and whether with either file our bytes are llama-quantize's.

python -m scripts.checks.imatrix acestep_gguf/demo
python -m scripts.checks.imatrix acestep_gguf/demo --keep imatrix

Builds llama-imatrix and llama-quantize on the first call. ``--keep`` copies llama-imatrix's two files into a
folder: those in tests/quantize/llama_imatrix are of ``TinyCheckpoint()``.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.options import EngineOptions
from acestep_gguf.quantize.imatrix import read_sums
from acestep_gguf.quantize.importance.run import TextFile, make_imatrix
from acestep_gguf.quantize.requantize import quantize_gguf
from scripts.bench.llama_cpp_tools import build_tools

FILES = {"imatrix.gguf": "gguf", "imatrix.dat": "dat"}
N_CTX = 64
# llama-imatrix puts several chunks into a call, we one; and repacks weights, which we do not on every CPU.
AS_WE_READ = ("-b", N_CTX, "-ub", N_CTX, "--no-repack")
# The statistics of a text, not its sense, are what counts here.
TEXT = (
    "What is in the picture? A red circle above two blue squares, on a white background. How many are there? "
    * 40
)


def absolute(name: str) -> Path:
    return Path(name).absolute()


def run(command: Sequence[object], folder: Path) -> None:
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr.decode(errors='replace')}")


def difference(ours: Path, theirs: Path) -> str:
    """How two imatrix files differ: at all, and by how much of a sum at most."""
    if ours.read_bytes() == theirs.read_bytes():
        return "the same bytes"
    mine, other = read_sums(ours), read_sums(theirs)
    if mine.sums.keys() != other.sums.keys() or mine.counts != other.counts:
        return "OTHER MATRICES OR COUNTS"
    most = max(float(np.max(np.abs(mine.sums[name] / sums - 1))) for name, sums in other.sums.items())
    return f"sums differ by {most:.1e} at most"


def check_quantization(tool: Path, decoder: Path, imatrix: Path, folder: Path) -> str:
    """Whether llama-quantize and we make the same bytes with ``imatrix``."""
    run([tool, "--imatrix", imatrix, decoder, "theirs.gguf", "Q4_K_M"], folder)
    quantize_gguf(decoder, folder / "ours.gguf", "Q4_K_M", imatrix=imatrix)
    same = (folder / "ours.gguf").read_bytes() == (folder / "theirs.gguf").read_bytes()
    return "the same Q4_K_M as llama-quantize" if same else "OTHER BYTES THAN LLAMA-QUANTIZE"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=absolute)
    parser.add_argument("--keep", type=absolute, help="folder for the two files")
    arguments = parser.parse_args()
    tools = build_tools(["llama-imatrix", "llama-quantize"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)  # both write the text's path as it was given
        Path("text.txt").write_text(TEXT)
        made = convert_checkpoint(
            arguments.checkpoint.absolute(), folder / "bundle", ["F16"], vision=["float32"]
        )
        decoder = folder / "bundle" / made.decoder().file
        command = [
            tools["llama-imatrix"],
            "-m",
            decoder,
            "-f",
            "text.txt",
            "-c",
            N_CTX,
            "--no-ppl",
            "-ngl",
            0,
        ]
        for file, output_format in FILES.items():
            run([*command, *AS_WE_READ, "--output-format", output_format, "-o", file], folder)
        run([*command, "-o", "default.gguf"], folder)
        ours = folder / "of_us.gguf"
        make_imatrix(folder / "bundle", ours, TextFile(Path("text.txt")), engine=EngineOptions(n_ctx=N_CTX))
        print(f"ours, read as llama-imatrix does: {difference(ours, folder / 'imatrix.gguf')}")
        print(f"ours, and llama-imatrix with its own calls: {difference(ours, folder / 'default.gguf')}")
        for file in (ours.name, *FILES):
            same = check_quantization(tools["llama-quantize"], decoder, folder / file, folder)
            print(f"{file}, {(folder / file).stat().st_size} bytes: {same}")
        if arguments.keep:
            arguments.keep.mkdir(exist_ok=True)
            for file in FILES:
                shutil.copy(folder / file, arguments.keep)


if __name__ == "__main__":
    main()
