"""Whether `quality --text` gives the figures of the real llama-perplexity.

python -m scripts.checks.perplexity acestep_gguf/demo
python -m scripts.checks.perplexity smollm2-F32.gguf smollm2-Q8_0.gguf smollm2-Q4_0.gguf --text docs.txt
python -m scripts.checks.perplexity acestep_gguf/demo --windows 16 --ctx-size 64 --golden DIR/perplexity

Builds llama-perplexity on the first call. Of a checkpoint, decoders are made; of GGUF files, the first is the
base. Without ``--text``, the text is drawn: questions and answers about held-out pictures of the demo.
``--golden`` writes the text, and llama-perplexity's figures of it, for the test that needs no build.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Final

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.quality.report import TextCandidate
from acestep_gguf.quality.statistics import Estimate
from acestep_gguf.quality.text import compare_on_text
from scripts.bench.llama_cpp_tools import build_tools
from scripts.demo.questions import SINGLES, questions

Figures = dict[str, dict[str, float]]

FTYPES: Final = ("F32", "F16", "Q8_0", "Q5_K_M", "Q4_K_M")
TOLERANCE: Final = 1e-3
ROUNDING: Final = 1e-6  # it prints six decimals
# What llama-perplexity calls its figures.
PATTERNS: Final = {
    "perplexity": r"Mean PPL\(Q\) +: +(\S+)",
    "perplexity of the base": r"Mean PPL\(base\) +: +(\S+)",
    "mean KLD": r"Mean +KLD: +(\S+)",
    "90 % KLD": r"90\.0% +KLD: +(\S+)",
    "99 % KLD": r"99\.0% +KLD: +(\S+)",
    "top-1": r"Same top p: +(\S+)",
}


def drawn_text(n_pictures: int) -> str:
    """Questions about pictures that the demo was not trained on, and their answers."""
    rng = Random("held-out/perplexity")
    lines = []
    for number in range(n_pictures):
        kind = list(SINGLES.values())[number % len(SINGLES)]
        for one in questions(kind(rng, True), rng):
            lines += [one.text, one.answer]
    return "\n".join(lines)


def theirs(tool: Path, decoders: Mapping[str, Path], text: Path, options: Sequence[str]) -> Figures:
    """llama-perplexity's figures; the first decoder is the base."""
    base = text.with_name("base.bin")
    figures = {}
    for name, path in decoders.items():
        command = ["-m", str(path), "-f", str(text), "--kl-divergence-base", str(base), *options]
        if not base.exists():
            _run(tool, command)
        printed = _run(tool, [*command, "--kl-divergence"])
        figures[name] = {figure: _figure(pattern, printed) for figure, pattern in PATTERNS.items()}
    return figures


def ours(candidate: TextCandidate, base: Estimate) -> dict[str, float]:
    """Our figures under the same names; top-1 in percent."""
    divergence = candidate.kl_divergence
    values = (
        candidate.perplexity.value,
        base.value,
        divergence.mean.value,
        divergence.p90.value,
        divergence.p99.value,
        100 * candidate.top_1.value,
    )
    return dict(zip(PATTERNS, values, strict=True))


def agree(mine: Mapping[str, float], yours: Mapping[str, float]) -> bool:
    """Whether all figures are the same, but for rounding.

    In percent, they print three decimals.
    """
    return all(
        abs(mine[name] - yours[name])
        <= TOLERANCE * abs(yours[name]) + ROUNDING * (500 if name == "top-1" else 1)
        for name in PATTERNS
    )


def _run(tool: Path, arguments: Sequence[str]) -> str:
    command = [sys.executable, "-m", "scripts.checks.llama_perplexity", str(tool.parent), *arguments]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        sys.exit(f"llama-perplexity failed:\n{done.stderr}")
    return done.stdout


def _figure(pattern: str, printed: str) -> float:
    found = re.search(pattern, printed)
    if found is None:
        sys.exit(f"llama-perplexity did not print {pattern}:\n{printed}")
    return float(found[1])


def decoders_of(source: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Those of a checkpoint, made in ``folder``, or the given files; the base first."""
    if len(source) > 1:
        return {path.stem: path for path in source}
    bundle = convert_checkpoint(source[0], folder, FTYPES, vision=["float32"])
    return {ftype: folder / bundle.decoder(ftype).file for ftype in FTYPES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, nargs="+", help="a checkpoint, or several GGUF files")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--ctx-size", type=int, default=512)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--golden", type=Path, help="where to keep text and figures: PATH.txt, PATH.json")
    arguments = parser.parse_args()
    n_ctx, n_windows = arguments.ctx_size, arguments.windows
    tool = build_tools(["llama-perplexity"])["llama-perplexity"]
    # One window a batch, as we read them: of several together, llama.cpp adds up in another order.
    options = ["-c", str(n_ctx), "-b", str(n_ctx), "--chunks", str(n_windows), "-ngl", "0", "--no-repack"]
    with tempfile.TemporaryDirectory() as name:
        text = Path(name) / "text.txt"
        n_characters = n_windows * n_ctx * 6  # more than the demo's tokens have
        drawn = drawn_text(n_windows * n_ctx // 40)[:n_characters]
        text.write_text(arguments.text.read_text() if arguments.text else drawn)
        decoders = decoders_of(arguments.source, Path(name) / "bundle")
        figures = theirs(tool, decoders, text, options)
        report = compare_on_text("", decoders, text.read_text(), n_ctx=n_ctx, max_windows=n_windows)
        print(f"{report.n_windows} windows of {n_ctx} tokens; ours / llama-perplexity's\n")
        print(f"| decoder | {' | '.join(PATTERNS)} | same |")
        print("|---|" + "---|" * (len(PATTERNS) + 1))
        holds = True
        for candidate in report.candidates:
            mine, yours = ours(candidate, report.base_perplexity), figures[candidate.decoder]
            cells = [f"{mine[name]:.6f} / {yours[name]:.6f}" for name in PATTERNS]
            print(f"| {candidate.decoder} | {' | '.join(cells)} | {'yes' if agree(mine, yours) else 'NO'} |")
            holds &= agree(mine, yours)
        if arguments.golden:
            arguments.golden.with_suffix(".txt").write_text(text.read_text())
            golden = {"n_ctx": n_ctx, "n_windows": n_windows, "figures": figures}
            arguments.golden.with_suffix(".json").write_text(json.dumps(golden, indent=2) + "\n")
    sys.exit(not holds)


if __name__ == "__main__":
    main()
