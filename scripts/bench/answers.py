"""Compare answering with llama-mtmd-cli, llama-bench and OpenVINO GenAI on the same random weights.

    pip install -e '.[bench]' && python -m scripts.bench.answers --rounds 3

Both sides get a ViT-H/14 tower at 448 px and a Q4_K_M decoder of the 1.5B shape with Qwen2's vocabulary,
made once by artefacts.py (about 14 GB). The tools are built from llama-cpp-python's source package; OpenVINO
GenAI gets a 4-bit model by its own converter and answers in an environment of its own, with its defaults.
Every round runs all programs in turn; figures are medians over the rounds. Time to the first token is from
the start of the process to the first byte of the answer, files in the page cache; llama-mtmd-cli writes a
line feed when it has read the prompt, so there it is the second byte. Memory is sampled every 0.1 s: more
often would slow programs down that keep all CPUs busy.
"""

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import platformdirs

from acestep_gguf import AceStep
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.cpus import usable_cpus
from acestep_gguf.prompt.messages import user_message
from acestep_gguf.vision.image import pixel_values
from acestep_gguf.vision.tower import VisionTower
from scripts.bench.answer_runs import (
    N_DECODE,
    QUESTION,
    REPACKS,
    THREADS,
    Bench,
    answer,
    decode_speed,
    encoded_s,
    first_byte,
    first_token,
    prefill_speed,
    tokens_per_s,
)
from scripts.bench.artefacts import SCALES, Artefacts
from scripts.bench.demo_answers import accuracy_rows, agreement_rows
from scripts.bench.int8_reading import int8_reading
from scripts.bench.table import Note, Row, Rows, report

OTHER_QUESTION = "What is in the background?"


def ask_all(bench: Bench) -> None:
    """Both sides answer about a picture, in turn."""
    few = ("--image-tokens", "256")
    best = ("--no-repack", "--no-warmup", "-fit", "off")
    bench.in_turn(
        {
            "llama-mtmd-cli, defaults, F16": lambda n: bench.mtmd(n, "F16"),
            "llama-mtmd-cli, best, Q8_0": lambda n: bench.mtmd(n, "Q8_0", *best),
            "run, new picture": bench.ask,
            "run, same picture and question": bench.ask,
            "run, same picture, other question": lambda n: bench.ask(n, OTHER_QUESTION),
            "run, new picture, 256 tokens": lambda n: bench.ask(100 + n, QUESTION, *few),
        }
    )


def tower(bench: Bench) -> Rows:
    """Seconds a picture, and what int8 costs in fidelity."""
    ask_all(bench)
    seconds, cosines = tower_figures(bench, bench.artefacts.bundle())
    for name, mmproj in (("defaults", "F16"), ("best", "Q8_0")):
        peer = bench.median(f"llama-mtmd-cli, {name}, {mmproj}", encoded_s)
        yield Row(
            f"tower, int8 to mmproj {mmproj}", f"{seconds:.2f} s", f"{peer:.2f} s", seconds / peer, 0.33
        )
    yield Row("cosine to float32, least", f"{cosines.min():.5f}", "", cosines.min(), 0.999, at_most=False)


def outliers(bench: Bench) -> Rows:
    """The same for a tower with outlier channels."""
    ask_all(bench)
    seconds, cosines = tower_figures(bench, bench.artefacts.outlier_bundle())
    peer = bench.median("llama-mtmd-cli, defaults, F16", encoded_s)
    what = "tower with outliers, int8 to mmproj F16"
    yield Row(what, f"{seconds:.2f} s", f"{peer:.2f} s", seconds / peer, 0.36)
    yield Row("cosine to float32, least", f"{cosines.min():.5f}", "", cosines.min(), 0.996, at_most=False)
    yield Row("cosine to float32, mean", f"{cosines.mean():.5f}", "", cosines.mean(), 0.998, at_most=False)


def tower_figures(bench: Bench, folder: Path) -> tuple[float, np.ndarray]:
    """Median seconds of the int8 tower, and the cosine of each token to the float32 one, float32 [n]."""
    bundle = Bundle.read(folder)
    _, image = bundle.tower()
    (pixels,) = pixel_values(bench.artefacts.picture(0), image)
    exact = VisionTower(folder, bundle, "float32", n_threads=usable_cpus()).encode(pixels).embeds
    int8 = VisionTower(folder, bundle, "int8", n_threads=usable_cpus())
    seconds = []
    for _ in range(bench.rounds + 1):  # the first one touches the memory
        began = time.perf_counter()
        embeds = int8.encode(pixels).embeds
        seconds.append(time.perf_counter() - began)
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(embeds, axis=1)
    return statistics.median(seconds[1:]), (exact * embeds).sum(axis=1) / norms


def first_tokens(bench: Bench) -> Rows:
    """From enter to the first token."""
    ask_all(bench)
    defaults, best = (
        bench.median(f"llama-mtmd-cli, {name}", first_token) for name in ("defaults, F16", "best, Q8_0")
    )
    for name, peer, to, bar in (
        ("run, new picture", defaults, "defaults", 0.50),
        ("run, new picture", best, "best settings", 0.60),
        ("run, new picture, 256 tokens", defaults, "defaults", 0.25),
        ("run, same picture and question", defaults, "defaults", 0.07),
        ("run, same picture, other question", defaults, "defaults", 0.07),
    ):
        seconds = bench.median(name, first_byte)
        what = f"first token: {name}, to llama-mtmd-cli at its {to}"
        yield Row(what, f"{seconds:.2f} s", f"{peer:.2f} s", seconds / peer, bar)


def image_tokens(bench: Bench) -> Rows:
    """What it saves to read a quarter of the image tokens."""
    seconds: dict[int | None, list[float]] = {None: [], 256: []}
    with ExitStack() as stack:
        models = {
            n_tokens: stack.enter_context(AceStep(bench.artefacts.bundle(), image_tokens=n_tokens))
            for n_tokens in seconds
        }
        for number in range(bench.rounds):
            picture = bench.artefacts.picture(number)
            for n_tokens, model in models.items():
                timings = model.generate(QUESTION, [picture], max_tokens=1).timings
                seconds[n_tokens].append(timings.prefill_s)
    fewer, whole = (statistics.median(seconds[n_tokens]) for n_tokens in (256, None))
    what = "prefill with 256 image tokens, to all 1,024"
    yield Row(what, f"{fewer:.2f} s", f"{whole:.2f} s", fewer / whole, 0.3)


def speeds(bench: Bench) -> Rows:
    """Prefill and decode by llama.cpp alone, against llama-bench."""
    same = ("--repack", "0", "-fa", "auto", "--no-warmup")  # ours, too, reads its first prompt
    plain = ("--no-repack", "--prefill", "off")
    n_prompt = answer(bench.read_and_write(*plain, "-n", "1"))["usage"]["prompt_tokens"]
    tuned = json.loads(bench.ours("tune", str(bench.artefacts.bundle()), "--json").stdout)
    read = ["-p", str(n_prompt), "-n", "0"]
    write = ["-p", "0", "-n", str(N_DECODE), "-d", str(n_prompt)]
    runs = {
        "llama-bench, prefill": lambda _: bench.llama_bench(*read, *same),
        "run, same settings": bench.reader(*plain, "-t", THREADS, "-ub", "512"),
        "llama-bench, decode": lambda _: bench.llama_bench(*write, *same),
    }
    compared = [
        ("decode", "run, same settings", decode_speed, "llama-bench, decode", 0.98),
        ("prefill", "run, same settings", prefill_speed, "llama-bench, prefill", 0.98),
    ]
    if REPACKS:
        defaults, bar = (
            "llama-bench, prefill, defaults",
            0.98 if tuned["settings"]["use_extra_bufts"] else 1.4,
        )
        runs |= {
            "run, tuned": bench.reader("--prefill", "off"),
            defaults: lambda _: bench.llama_bench(*read),
        }
        compared.append(("prefill after tune", "run, tuned", prefill_speed, defaults, bar))
    bench.in_turn(runs)
    for what, name, speed, peer, bar in compared:
        ours, theirs = bench.median(name, speed), bench.median(peer, tokens_per_s)
        yield Row(f"{what}, to {peer}", f"{ours:.1f}/s", f"{theirs:.1f}/s", ours / theirs, bar, at_most=False)
    yield Note("tune", f"{tuned['reason']} ({tuned['seconds']:.0f} s)")


def chat(bench: Bench) -> Rows:
    """A second turn computes what is new and nothing else."""
    with AceStep(bench.artefacts.bundle()) as model:
        question = user_message(QUESTION, [bench.artefacts.picture(0)])
        first = model.generate([question], max_tokens=16, exact=False)
        answered = [question, {"role": "assistant", "content": first}]
        second = model.generate([*answered, user_message(OTHER_QUESTION, [])], max_tokens=1, exact=False)
    # The last token of an answer is chosen, but computed only with what follows it.
    known = first.usage.prompt_tokens + len(first.tokens) - (first.finish_reason == "length")
    new, prefilled = second.usage.prompt_tokens - known, second.timings.prefill_tokens
    yield Row("second turn: tokens prefilled, to new ones", str(prefilled), str(new), prefilled / new, 1.0)


def speculation(bench: Bench) -> Rows:
    """Guessing ahead; random weights are no texts, so the demo is there too."""
    ways = {
        "plain": [],
        "--spec-type ngram-simple": ["--spec-type", "ngram-simple"],
        "--draft, 0.5B shape, which reads the prompt, too": ["--draft", str(bench.artefacts.draft_bundle())],
    }
    bench.in_turn({f"run, {name}": bench.reader(*options) for name, options in ways.items()})
    plain = bench.median("run, plain", decode_speed)
    for name in list(ways)[1:]:
        ours = bench.median(f"run, {name}", decode_speed)
        yield Note(f"decode with {name}, to plain", f"{ours:.1f} to {plain:.1f} tokens/s, {ours / plain:.2f}")


def startup(bench: Bench) -> Rows:
    """What a person waits for who only looks."""
    bundle = str(bench.artefacts.bundle())
    bench.in_turn({"--help": lambda _: bench.ours("--help"), "info": lambda _: bench.ours("info", bundle)})
    for name in ("--help", "info"):
        seconds = bench.median(name, lambda cost: cost.seconds)
        yield Row(f"acestep-gguf {name}", f"{seconds:.2f} s", "", seconds, 0.3)


def demo(bench: Bench) -> Rows:
    """What answers of a trained model become, over its held-out questions."""
    bundle = bench.artefacts.demo_bundle()
    yield from accuracy_rows(bundle, bench.per_skill)
    yield from agreement_rows(bundle, max(1, bench.per_skill // 10))


PARTS = {
    "tower": tower,
    "outliers": outliers,
    "first-token": first_tokens,
    "int8-reading": int8_reading,
    "image-tokens": image_tokens,
    "speed": speeds,
    "chat": chat,
    "speculation": speculation,
    "startup": startup,
    "demo": demo,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--per-skill", type=int, default=100, help="held-out questions to the demo bundle")
    parser.add_argument("--only", action="append", choices=PARTS, help="part to run, may be repeated")
    parser.add_argument("--folder", type=Path, help="where models and pictures are kept")
    parser.add_argument("--shape", choices=SCALES, default="1.5b", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    folder = arguments.folder or platformdirs.user_cache_path("acestep-gguf-bench") / "answers"
    bench = Bench(
        Artefacts(folder / arguments.shape, SCALES[arguments.shape]), arguments.rounds, arguments.per_skill
    )
    began = time.perf_counter()
    rows = [row for name in arguments.only or PARTS for row in PARTS[name](bench)]
    print(f"\nmeasured in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    conditions = f"{bench.rounds} rounds, {THREADS} threads"
    sys.exit(0 if report(rows, bench.costs, conditions) else 1)


if __name__ == "__main__":
    main()
