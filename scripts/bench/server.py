"""Compare our server with llama-server under the same clients, on the same random weights.

    pip install -e '.[bench,server]' && python -m scripts.bench.server

Eight clients ask about a picture each, over and over, and get answers of 64 tokens: a decoder of the 1.5B
shape (Q4_K_M) behind a ViT-H/14 tower at 448 px. The requests are divided into blocks, which the servers
answer in turn; figures are medians over the blocks, in seconds a request. Both are started before the clock.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import platformdirs

from acestep_gguf.bundle.schema import Bundle
from scripts.bench.artefacts import OUR_PROGRAM, SCALES, Artefacts
from scripts.bench.batch import LLAMA_SERVER, N_CTX, N_SLOTS, N_TOKENS, QUESTION, served
from scripts.bench.llama_cpp_tools import build_tools
from scripts.bench.llama_server import LlamaServer, ask
from scripts.bench.table import Note, Row, report

Ask = Callable[[Path], dict[str, Any]]

BAR: Final = 1 / 1.5


@contextmanager
def our_server(bundle: Path, options: Sequence[str]) -> Iterator[Ask]:
    """Our server, while the ``with`` block runs; its cache is empty and not used."""
    settings = ["-c", str(N_CTX), "--no-cache", *options]
    command = [str(OUR_PROGRAM), "serve", str(bundle), "--port", "0", *settings]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next((line.split()[-1] for line in process.stderr if line.startswith("listening on ")), None)
        if url is None:
            sys.exit(f"{' '.join(command)} did not start.")
        try:
            yield lambda picture: ask(url, picture, QUESTION, N_TOKENS)
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--mmproj", choices=("F16", "Q8_0"), default="F16", help="llama.cpp's tower")
    parser.add_argument("--folder", type=Path, help="where models and pictures are kept")
    parser.add_argument("--shape", choices=SCALES, default="1.5b", help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*", help="behind --: options for `serve`")
    arguments = parser.parse_args()

    folder = arguments.folder or platformdirs.user_cache_path("acestep-gguf-bench") / "answers"
    artefacts = Artefacts(folder / arguments.shape, SCALES[arguments.shape])
    bundle, facts = artefacts.bundle(), Bundle.read(artefacts.bundle())
    program = build_tools(["llama-server"])["llama-server"]
    decoder, mmproj = bundle / facts.decoder("Q4_K_M").file, bundle / facts.mmproj[arguments.mmproj].file
    pictures = [artefacts.picture(number) for number in range(arguments.requests)]
    size = len(pictures) // arguments.blocks
    theirs: list[float] = []
    ours: list[float] = []
    with (
        LlamaServer(program, decoder, mmproj, LLAMA_SERVER) as peer,
        our_server(bundle, arguments.options) as ask_us,
    ):

        def peer_answer(picture: Path) -> dict[str, Any]:
            return peer.ask(picture, QUESTION, N_TOKENS)

        for number in range(arguments.blocks):
            block = pictures[number * size : (number + 1) * size]
            for ask_about, seconds in ((peer_answer, theirs), (ask_us, ours)):
                seconds.append(served(ask_about, block, arguments.clients) / len(block))
            print(f"block {number + 1}: {theirs[-1]:.2f} s, ours {ours[-1]:.2f} s", file=sys.stderr)
    mine, peers = statistics.median(ours), statistics.median(theirs)
    rows: list[Row | Note] = [
        Row(
            f"serve, to llama-server with {N_SLOTS} slots",
            f"{mine:.2f} s",
            f"{peers:.2f} s",
            mine / peers,
            BAR,
        )
    ]
    conditions = f"{len(pictures)} requests of {arguments.clients} clients in {arguments.blocks} blocks"
    sys.exit(0 if report(rows, {}, f"{conditions}, mmproj {arguments.mmproj}") else 1)


if __name__ == "__main__":
    main()
