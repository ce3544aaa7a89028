"""Reading a picture in int8: first tokens in new and in warm processes, against llama.cpp and OpenVINO GenAI.

In a new process the first token is waited for from its start, in a warm one from when the question about its
second picture, which is new to it, is asked. Every process has pictures of its own.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.bench.answer_runs import QUESTION, REPACKS, Bench, first_byte, first_token, tokens_per_s
from scripts.bench.process_cost import Cost
from scripts.bench.table import Note, Row, Rows

OPENVINO = "OpenVINO GenAI"
INT8, OFF = "ours, --prefill int8", "ours, --prefill off"
MTMD = "llama-mtmd-cli, defaults, F16"
NEW, NEW_OFF = "run, new picture", "run --prefill off, new picture"
LLAMA_BENCH = "llama-bench, a picture's prompt"
REPACKED = f"{LLAMA_BENCH}, repacked"
FIGURES = b'{"seconds"'  # how the lines of the processes that are asked twice begin


def int8_reading(bench: Bench) -> Rows:
    """Prefill, and the first token."""
    bench.in_turn(
        {
            OPENVINO: lambda n: bench.openvino(two_pictures(bench, n)),
            INT8: lambda n: bench.first_tokens("int8", two_pictures(bench, n)),
            OFF: lambda n: bench.first_tokens("off", two_pictures(bench, n)),
            NEW: bench.ask,
            NEW_OFF: lambda n: bench.ask(200 + n, QUESTION, "--prefill", "off"),
            MTMD: lambda n: bench.mtmd(n, "F16"),
        }
    )
    yield from prefill(bench)
    warm, peer = bench.median(INT8, warm_seconds), bench.median(OPENVINO, warm_seconds)
    yield row(f"first token, new picture, warm process, to {OPENVINO}", warm, peer, 0.88)
    cold, openvino, mtmd = (
        bench.median(NEW, first_byte),
        bench.median(OPENVINO, cold_seconds),
        bench.median(MTMD, first_token),
    )
    yield row(f"first token, new picture, new process, to {OPENVINO}", cold, openvino, 0.65)
    yield row("first token, new picture, new process, to llama-mtmd-cli at its defaults", cold, mtmd, 0.50)
    yield from notes(bench)


def prefill(bench: Bench) -> Iterator[Row | Note]:
    """Of a picture's prompt, to the best that llama.cpp did: through ours, or llama-bench."""
    n_prompt = answers(bench.costs[OFF][0])[1]["prompt_tokens"]
    read = ["-p", str(n_prompt), "-n", "0", "-fa", "auto", "--no-warmup"]
    runs = {LLAMA_BENCH: lambda _: bench.llama_bench(*read, "--repack", "0")}
    if REPACKS:
        runs[REPACKED] = lambda _: bench.llama_bench(*read)
    bench.in_turn(runs)
    seconds = {name: n_prompt / bench.median(name, tokens_per_s) for name in runs}
    seconds[OFF] = bench.median(OFF, warm_prefill)
    best = min(seconds, key=lambda name: seconds[name])
    what = f"prefill of {n_prompt:,} tokens in int8, to llama.cpp's best ({best})"
    yield row(what, bench.median(INT8, warm_prefill), seconds[best], 0.70)
    yield Note("prefill by llama.cpp", ", ".join(f"{name} {taken:.2f} s" for name, taken in seconds.items()))


def notes(bench: Bench) -> Iterator[Note]:
    """What stands beside the bars."""
    says = answers(bench.costs[OPENVINO][0])[0]
    yield Note(OPENVINO, f"{says['version']}, int4, KV {says['kv_cache']}, {says['computes_in']}")
    for name in (OPENVINO, INT8, OFF):
        cold, warm, part = (
            bench.median(name, figure) for figure in (cold_seconds, warm_seconds, warm_prefill)
        )
        n_prompt = answers(bench.costs[name][0])[1]["prompt_tokens"]
        figures = (
            f"new process {cold:.2f} s, warm {warm:.2f} s, of which {part:.2f} s read {n_prompt:,} tokens"
        )
        yield Note(name, figures)
    yield Note(NEW_OFF, f"{bench.median(NEW_OFF, first_byte):.2f} s")
    if not REPACKS:
        yield Note("llama.cpp's tools", "not repacked, since they crash on this CPU otherwise")


def row(what: str, ours: float, peer: float, bar: float) -> Row:
    return Row(what, f"{ours:.2f} s", f"{peer:.2f} s", ours / peer, bar)


def two_pictures(bench: Bench, number: int) -> list[Path]:
    return [bench.artefacts.picture(300 + 2 * number + one) for one in range(2)]


def answers(cost: Cost) -> list[dict[str, Any]]:
    """What a process said about each of its pictures; libraries print, too."""
    return [json.loads(line) for line in cost.stdout.splitlines() if line.startswith(FIGURES)]


def cold_seconds(cost: Cost) -> float:
    """From the start of the process to the first token about its first picture."""
    return cost.byte_s[cost.stdout.index(FIGURES)]


def warm_seconds(cost: Cost) -> float:
    """From the second question to the first token of its answer."""
    return float(answers(cost)[1]["seconds"])


def warm_prefill(cost: Cost) -> float:
    """The part of it in which the decoder read."""
    return float(answers(cost)[1]["prefill_s"])
