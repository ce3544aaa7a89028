"""The mixture that is searched for against Q4_K_M of the same size, on pictures that the search did not see.

python -m scripts.bench.mixture [--pictures 32] [--held-out 250] [--layers-together 1]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import numpy as np

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.demo.questions import CHECKPOINT
from acestep_gguf.quantize.divergence import Judge, Measured
from acestep_gguf.quantize.mixture import MixtureRequest, search_mixture
from scripts.demo.questions import SINGLES, questions
from scripts.demo.scenes import draw

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


@dataclass(frozen=True)
class Comparison:
    """A plain recipe and the mixture of its size, each on the pictures searched on and on others."""

    plain: tuple[Measured, Measured]
    mixture: tuple[Measured, Measured]
    n_measured: int

    @property
    def gain(self) -> float:
        """The share of the plain recipe's divergence that the mixture spares on other pictures."""
        return 1 - self.mixture[1].kl_divergence / self.plain[1].kl_divergence

    def gain_at_least(self) -> float:
        """The lower end of its 95 % interval: a bootstrap over held-out questions."""
        plain, mixture = (
            np.array([one.sum() for one in measured.divergences])
            for measured in (self.plain[1], self.mixture[1])
        )
        draws = np.random.default_rng(1).integers(len(plain), size=(1000, len(plain)))
        return float(np.percentile(1 - mixture[draws].sum(1) / plain[draws].sum(1), 2.5))

    def table(self) -> str:
        """In Markdown."""
        lines = ["| decoder | bytes | KLD, searched on | KLD, held out |", "|---|---|---|---|"]
        for label, (seen, unseen) in ((SIZE, self.plain), ("mixture", self.mixture)):
            figures = (f"{seen.n_bytes:,}", f"{seen.kl_divergence:.2e}", f"{unseen.kl_divergence:.2e}")
            lines.append(f"| {' | '.join((label, *figures))} |")
        return "\n".join(lines)


def compare(folder: Path, pictures: int, held_out: int, request: MixtureRequest) -> Comparison:
    """Search on some pictures and compare on others; ``folder`` is for what is made."""
    for part in ("search", "held-out", "scratch", "held-out-scratch"):
        (folder / part).mkdir()
    bundle = folder / "bundle"
    convert_checkpoint(CHECKPOINT, bundle, ["F32"], vision=["float32"])
    seen = drawn(folder / "search", "mixture", pictures)
    report = search_mixture(bundle, seen, request, folder / "scratch", on_measured=told)
    assert report.plain is not None
    judge = Judge(
        bundle,
        drawn(folder / "held-out", "mixture, held out", held_out),
        folder / "held-out-scratch",
        max_tokens=request.max_tokens,
        imatrix=request.imatrix,
        threads=request.threads,
        on_measured=told,
    )
    plain = judge.measure({}, SIZE, SIZE)
    mixture = judge.measure(report.mixture.types, "mixture")
    return Comparison((report.plain, plain), (report.mixture, mixture), report.n_measured)


def told(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=32, help="to search on")
    parser.add_argument("--held-out", type=int, default=250, help="to compare on")
    parser.add_argument("--swaps", type=int, default=0)
    parser.add_argument("--layers-together", type=int, default=1)
    parser.add_argument("--imatrix", type=Path)
    arguments = parser.parse_args()
    request = MixtureRequest(
        size=SIZE,
        imatrix=arguments.imatrix,
        layers_together=arguments.layers_together,
        swaps=arguments.swaps,
    )
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), arguments.pictures, arguments.held_out, request)
    print(
        f"{found.table()}\n\n{found.n_measured} measured; on other pictures {found.gain:.0%} "
        f"less, {found.gain_at_least():.0%} at least."
    )


if __name__ == "__main__":
    main()
