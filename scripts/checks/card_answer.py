"""A question about a picture on a played GPU, in a control group of so much RAM, and on the CPU alone.

    python -m scripts.synthetic.bundle --shape 32b --precision int8 /tmp/bundle-32b
    python -m scripts.checks.card_answer /tmp/bundle-32b PICTURE --card 12GiB --ram 16GiB --ctx-size 4096

The CPU gets the settings that were planned for the card, but for what lies where. Tokens of both answers, the
last of their logits and all keys and values are compared to the bit, and what was planned is printed beside
what was taken. Needs the right to make a control group.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from acestep_gguf.cpus import usable_cpus
from acestep_gguf.engine.engine import AceStep
from acestep_gguf.engine.question import Question
from acestep_gguf.options import AnswerOptions, EngineOptions
from acestep_gguf.plan.report import plan_facts
from acestep_gguf.sizes import parse_size
from scripts.bench.measured_run import Peaks
from scripts.bench.memory_group import memory_group
from scripts.checks.played_card import Card, play_card, use_card

MODULE: Final = "scripts.checks.card_answer"
QUESTION: Final = "What is in this picture?"
# Of a plan's settings, those that decide which numbers come out, or where the weights of the CPU lie.
SHARED: Final = (
    "n_ctx",
    "n_batch",
    "n_ubatch",
    "type_k",
    "type_v",
    "flash_attn",
    "use_mmap",
    "use_extra_bufts",
)
COMPARED: Final = ("tokens", "logits", "state")


@dataclass(frozen=True)
class Run:
    """What ``ask`` found, and the most memory that it took, in bytes."""

    facts: dict[str, Any]
    peaks: Peaks
    group: int


def ask(bundle: Path, picture: Path, options: Mapping[str, Any], n_predict: int) -> dict[str, Any]:
    """The plan, the answer's tokens, and hashes of the last logits and of all keys and values."""
    question = Question(QUESTION, [picture], AnswerOptions(temperature=0, max_tokens=n_predict))
    with AceStep(bundle, EngineOptions(cache=False, **options), first=question) as model:
        answer = model.generate(question)
        context = model._decoder.context
        state = context.state()
        return {
            "plan": plan_facts(model.plan),
            "tokens": answer.tokens,
            "logits": hashlib.sha256(context.logits().data).hexdigest(),
            "state": hashlib.sha256(state.data).hexdigest(),
            "state_bytes": len(state),
            "n_past": context.n_past(),
            "image_tokens": answer.usage.image_tokens,
            "prefill": answer.timings.prefill_tokens_per_s,
            "decode": answer.timings.decode_tokens_per_s,
        }


def run(asked: list[str], options: Mapping[str, Any], ram: int | None, card: Card | None) -> Run:
    """``ask`` in a process of its own, in a group of ``ram`` bytes."""
    command = [sys.executable, "-m", MODULE, "--child", *asked, json.dumps(options)]
    if card is not None:
        command += [str(card.library), card.endpoint]
    # Where two processes share few cores, neither may spin while it waits.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    with memory_group() as group, tempfile.TemporaryFile("w+") as out:
        if ram is not None:
            group.limit(ram)
        process = subprocess.Popen(group.command(*command), stdout=out, text=True, env=environment)
        peaks = Peaks()
        peaks.watch(process)
        if process.returncode:
            sys.exit(f"{' '.join(command)} ended with {process.returncode}")
        out.seek(0)
        return Run(json.load(out), peaks, group.peak)


def row(name: str, one: Run) -> str:
    planned, facts = one.facts["plan"]["ram"], one.facts
    sizes = (planned["anonymous"], one.peaks.anonymous, planned["mapped"], one.peaks.mapped, one.group)
    cells = " | ".join(f"{size:,}" for size in sizes)
    return f"| {name} | {cells} | {facts['prefill']:.2f} | {facts['decode']:.2f} |"


def compare(on_card: Run, on_cpu: Run) -> bool:
    """Print tables; whether both answers are the same to the bit."""
    one, other = on_card.facts, on_cpu.facts
    print(f"{one['n_past']} positions, {one['image_tokens']} of them a picture's; answer: {one['tokens']}\n")
    print("| on the card | planned |\n|---|---|")
    for part in one["plan"]["parts"]:
        if part["device"] == 1:
            print(f"| {part['name']} | {part['n_bytes']:,} |")
    print()
    kinds = "anonymous, planned | taken | mapped, planned | taken | the group's peak"
    print(f"| RAM | {kinds} | reads, tokens/s | writes |\n|---|---|---|---|---|---|---|---|")
    print(row("beside the card", on_card))
    print(row("CPU alone", on_cpu))
    print()
    for name in COMPARED:
        print(f"{name}: {'the same' if one[name] == other[name] else f'{one[name]} and {other[name]}'}")
    return all(one[name] == other[name] for name in COMPARED)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--card", required=True, help="memory of the played GPU, such as 12GiB")
    parser.add_argument("--ram", help="of the process beside it; default: no limit")
    parser.add_argument("--ctx-size", type=int, help="default: as planned")
    parser.add_argument("--image-tokens", type=int, help="of the picture; default: all")
    parser.add_argument("--n-predict", type=int, default=12, help="tokens of the answer")
    arguments = parser.parse_args()
    # Its weights cannot be repacked on a card's side, so they are not on the other.
    options = {
        "n_ctx": arguments.ctx_size,
        "image_tokens": arguments.image_tokens,
        "prefill": "off",
        "use_extra_bufts": False,
    }
    asked = [str(arguments.bundle), str(arguments.picture), str(arguments.n_predict)]
    ram = None if arguments.ram is None else parse_size(arguments.ram, "--ram")
    with play_card(parse_size(arguments.card, "--card"), n_threads=usable_cpus()) as card:
        on_card = run(asked, options, ram, card)
        granted, refused = card.granted(), card.refused()
    print(f"granted on the card: {granted}; refused: {refused}", flush=True)
    settings = on_card.facts["plan"]["settings"]
    same = {name: settings[name] for name in SHARED}
    on_cpu = run(asked, options | same | {"allow_paging": True}, None, None)
    sys.exit(not compare(on_card, on_cpu))


def child(words: list[str]) -> None:
    bundle, picture, n_predict, options, *card = words
    if card:
        use_card(Path(card[0]), card[1])
    json.dump(ask(Path(bundle), Path(picture), json.loads(options), int(n_predict)), sys.stdout)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
