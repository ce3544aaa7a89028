"""Whether imatrix files of the real llama-imatrix, in both formats, give the bytes that llama-quantize makes.

python -m scripts.checks.imatrix acestep_gguf/demo
python -m scripts.checks.imatrix acestep_gguf/demo --keep imatrix

Builds llama-imatrix and llama-quantize on the first call. ``--keep`` copies the two files into a folder:
those in tests/quantize/llama_imatrix are of ``TinyCheckpoint()``.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.quantize.requantize import quantize_gguf
from scripts.bench.llama_cpp_tools import build_tools

FORMATS = {"gguf": "imatrix.gguf", "dat": "imatrix.dat"}
N_CTX = 64
# The statistics of a text, not its sense, are what counts here.
TEXT = (
    "What is in the picture? A red circle above two blue squares, on a white background. How many are there? "
    * 40
)


def make_imatrix(tool: Path, decoder: Path, folder: Path, name: str, output_format: str) -> Path:
    (folder / "text.txt").write_text(TEXT)
    files = [str(tool), "-m", str(decoder), "-f", "text.txt", "-o", name, "--output-format", output_format]
    run([*files, "-c", str(N_CTX), "--no-ppl", "-ngl", "0"], folder)
    return folder / name


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr.decode(errors='replace')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the two files")
    arguments = parser.parse_args()
    tools = build_tools(["llama-imatrix", "llama-quantize"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = convert_checkpoint(arguments.checkpoint, folder / "bundle", ["F16"], vision=["float32"])
        decoder = folder / "bundle" / bundle.decoder().file
        for output_format, file in FORMATS.items():
            imatrix = make_imatrix(tools["llama-imatrix"], decoder, folder, file, output_format)
            command = [tools["llama-quantize"], "--imatrix", imatrix, decoder, "theirs.gguf", "Q4_K_M"]
            run([*map(str, command)], folder)
            quantize_gguf(decoder, folder / "ours.gguf", "Q4_K_M", imatrix=imatrix)
            same = (folder / "ours.gguf").read_bytes() == (folder / "theirs.gguf").read_bytes()
            print(f"{file}, {imatrix.stat().st_size} bytes: {'the same bytes' if same else 'OTHER BYTES'}")
            if arguments.keep:
                arguments.keep.mkdir(exist_ok=True)
                shutil.copy(imatrix, arguments.keep)


if __name__ == "__main__":
    main()
