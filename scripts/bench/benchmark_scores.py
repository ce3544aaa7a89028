"""The demo checkpoint in the four benchmarks, with drawn pictures in their official forms.

python -m scripts.bench.benchmark_scores /tmp/benchmark-scores

What a decoder gets, as a Markdown table. A second call carries on, or prints the table again.
"""

import argparse
from pathlib import Path
from typing import Final

from acestep_gguf import EngineOptions
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.score.report import ScoreReport, is_whole
from acestep_gguf.score.run import score_bundle
from scripts.checks.drawn_benchmarks import draw_all

CHECKPOINT: Final = Path("acestep_gguf/demo")
QUANTS: Final = ("Q4_K_M", "Q8_0", "F32")
SEED: Final = 1
MAX_TOKENS: Final = 32
# Several threads of llama.cpp wait for each other, which takes long for so small a model.
OPTIONS: Final = EngineOptions(n_threads=1, n_parallel=-1)


def rows(report: ScoreReport) -> list[list[str]]:
    """The scores of a whole benchmark, by way, prompts and rule."""
    found = []
    for of_decoders in zip(*(decoder.passes for decoder in report.decoders), strict=True):
        for scores in zip(*(one.scores for one in of_decoders), strict=True):
            first = scores[0]
            if is_whole(first):
                name = f"{report.title}, {first.name}"
                values = [f"{score.value:.1f}" for score in scores]
                found.append(
                    [name, of_decoders[0].prompts, first.rule, str(first.n), f"{first.most:g}", *values]
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for files, bundle and answers")
    parser.add_argument("--prompts", action="append", help="of a harness; by default the usual; may repeat")
    parser.add_argument("--limit", type=int, help="questions of each benchmark")
    arguments = parser.parse_args()
    work: Path = arguments.work
    convert_checkpoint(CHECKPOINT, work / "bundle", QUANTS)
    table = [["benchmark", "prompts", "rule", "n", "most", *QUANTS]]
    for name, drawn in draw_all(work / "files", SEED).items():
        for prompts in arguments.prompts or (None,):
            report = score_bundle(
                work / "bundle",
                name,
                drawn.tsv,
                output=work / name,
                quants=QUANTS,
                prompts=prompts,
                limit=arguments.limit,
                max_tokens=MAX_TOKENS,
                options=OPTIONS,
            )
            table += rows(report)
    table.insert(1, ["---"] * len(table[0]))
    print("\n".join(f"| {' | '.join(row)} |" for row in table))


if __name__ == "__main__":
    main()
