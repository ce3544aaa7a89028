"""What the quantizations of a demo checkpoint cost, on pictures that were kept from its training.

    python -m scripts.bench.demo_quality acestep_gguf/demo --per-skill 16 --html quality.html

Each picture is drawn with a question of its own; comparisons are left out, which are about two pictures.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from acestep_gguf.bundle.names import FTYPES, ftype_from
from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.quality.compare import measure_quality
from acestep_gguf.quality.page import html_page
from acestep_gguf.quality.table import Table, tables
from scripts.demo.questions import SKILLS, held_out_questions

MEASURED: Final = (
    "F32",
    "F16",
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q4_K_M",
    "IQ4_XS",
    "IQ4_NL",
    "Q4_0",
    "Q3_K_M",
    "Q2_K",
)
MAX_TOKENS: Final = 96


def draw(folder: Path, per_skill: int) -> Iterator[tuple[Path, str]]:
    """Pictures in ``folder``, and what is asked about them."""
    for skill in SKILLS:
        for number, one in enumerate(held_out_questions(skill, per_skill)):
            if len(one.images) == 1:
                path = folder / f"{skill}-{number}.png"
                one.images[0].save(path)
                yield path, one.question.text


def markdown(table: Table) -> str:
    """Intervals stand behind their figures."""
    lines = [list(table.heads), ["---"] * len(table.heads)]
    for row in table.rows:
        lines.append([f"{cell.figure} ({cell.interval})" if cell.interval else cell.figure for cell in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-q", dest="ftypes", action="append", choices=FTYPES, help="repeat for more")
    parser.add_argument("--per-skill", type=int, default=16)
    parser.add_argument("--html", type=Path, help="also write the page")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert_checkpoint(
            arguments.checkpoint, folder / "bundle", list(map(ftype_from, arguments.ftypes or MEASURED))
        )
        (folder / "pictures").mkdir()
        asked = list(draw(folder / "pictures", arguments.per_skill))
        report = measure_quality(
            folder / "bundle",
            asked,
            max_tokens=MAX_TOKENS,
            on_candidate=lambda candidate: print(f"asking {candidate}", file=sys.stderr),
        )
        if arguments.html:
            arguments.html.write_text(html_page(report))
    print(f"{len(asked)} questions\n\n" + "\n\n".join(map(markdown, tables(report))))


if __name__ == "__main__":
    main()
