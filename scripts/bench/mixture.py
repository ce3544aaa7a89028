"""The mixture that is searched for against Q4_K_M of the same size, on pictures that the search did not see.

python -m scripts.bench.mixture [--pictures 24] [--held-out 120]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Final

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.demo.questions import CHECKPOINT
from acestep_gguf.quantize.divergence import Judge
from acestep_gguf.quantize.mixture import MixtureRequest, search_mixture
from scripts.demo.questions import SINGLES, questions
from scripts.demo.scenes import draw

MAX_TOKENS = 64
SIZE: Final = "Q4_K_M"


def drawn(folder: Path, seed: str, count: int) -> list[tuple[Path, str]]:
    """``count`` pictures of all kinds, none of the training's, each with two questions."""
    asked = []
    kinds = list(SINGLES.values())
    for number in range(count):
        rng = Random(f"{seed}/{number}")
        picture = kinds[number % len(kinds)](rng, True)
        path = folder / f"{number:03}.png"
        draw(picture, rng)[0].save(path)
        by_length = sorted(questions(picture, rng), key=lambda one: -len(one.answer))
        asked += [(path, by_length[0].text), (path, rng.choice(by_length[1:]).text)]
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=24, help="to search on")
    parser.add_argument("--held-out", type=int, default=120, help="to compare on")
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--recipe", type=Path, help="write the mixture here")
    arguments = parser.parse_args()

    def told(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("search", "held-out", "scratch", "held-out-scratch"):
            (folder / part).mkdir()
        bundle = folder / "bundle"
        convert_checkpoint(CHECKPOINT, bundle, ["F32"], vision=["float32"])
        seen = drawn(folder / "search", "mixture", arguments.pictures)
        unseen = drawn(folder / "held-out", "mixture, held out", arguments.held_out)
        request = MixtureRequest(size=SIZE, max_tokens=MAX_TOKENS, imatrix=arguments.imatrix)
        report = search_mixture(bundle, seen, request, folder / "scratch", on_measured=told)
        if arguments.recipe:
            arguments.recipe.write_text(report.mixture.recipe)
        judge = Judge(
            bundle,
            unseen,
            folder / "held-out-scratch",
            max_tokens=MAX_TOKENS,
            imatrix=arguments.imatrix,
            on_measured=told,
        )
        plain = judge.measure({}, SIZE, SIZE)
        mixture = judge.measure(report.mixture.types, "mixture")
    print(f"{report.n_measured} decoders measured on {len(seen)} questions; held out: {len(unseen)}.")
    print("| decoder | bytes | KLD, searched on | KLD, held out |")
    print("|---|---|---|---|")
    assert report.plain is not None
    for label, own, held_out in ((SIZE, report.plain, plain), ("mixture", report.mixture, mixture)):
        row = (f"{own.n_bytes:,}", f"{own.kl_divergence:.3e}", f"{held_out.kl_divergence:.3e}")
        print(f"| {' | '.join((label, *row))} |")
    print(f"held out, {1 - mixture.kl_divergence / plain.kl_divergence:.1%} less")


if __name__ == "__main__":
    main()
