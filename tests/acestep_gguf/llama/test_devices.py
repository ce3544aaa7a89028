"""Layers on a GPU that a process plays give the very numbers that the CPU gives."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from acestep_gguf.bundle.names import DecoderFtype
from acestep_gguf.bundle.schema import Bundle
from scripts.checks.played_card import Card
from tests.support.cards import played_card

FREE = 5 * 2**30
N_PROMPT = 40  # enough for a GPU to multiply with weights that lie in RAM

# A process of its own, since llama.cpp has a GPU for good: prints the logits of each load's prompt and of
# five tokens after it as rows of hexadecimal bytes, and what llama.cpp logs about the layers.
CHILD = """
import json, sys
from collections import deque
from pathlib import Path

from acestep_gguf.llama.backend import backend
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.devices import gpu_devices
from acestep_gguf.llama.params import ContextParams, ModelParams
from acestep_gguf.plan.machine import this_machine
from scripts.checks.played_card import use_card

path, loads, *card = sys.argv[1:]
log = backend()
log.lines = deque(maxlen=10_000)
assert gpu_devices() == []
if card:
    library, endpoint, free = card
    use_card(Path(library), endpoint)
    assert gpu_devices() == [(endpoint, int(free))]
    (gpu,) = this_machine().gpus
    assert (gpu.name, gpu.memory) == (endpoint, int(free))
results = []
for n_gpu_layers, offload_kqv, cpu_tensors in json.loads(loads):
    params = ModelParams(n_gpu_layers=n_gpu_layers, cpu_tensors=tuple(cpu_tensors))
    with Model(Path(path), params) as model:
        lines = list(log.lines)
        with Context(model, ContextParams(n_ctx=256, n_ubatch=64, offload_kqv=offload_kqv)) as context:
            prompt = [token % model.n_vocab for token in range(7, 7 + 3 * N_PROMPT, 3)]
            context.decode_tokens(prompt, 0, n_outputs=1)
            rows = [context.logits()]
            for position in range(len(prompt), len(prompt) + 5):
                context.decode_tokens([int(rows[-1].argmax())], position, n_outputs=1)
                rows.append(context.logits())
    results.append({"lines": lines, "logits": [row.tobytes().hex() for row in rows]})
json.dump(results, sys.stdout)
""".replace("N_PROMPT", str(N_PROMPT))

Load = tuple[int, bool, Sequence[str]]


@pytest.fixture(scope="module")
def card() -> Iterator[Card]:
    with played_card(FREE) as card:
        yield card


def run(path: Path, loads: Sequence[Load], card: Card | None = None) -> list[dict[str, list[str]]]:
    command = [sys.executable, "-c", CHILD, str(path), json.dumps(loads)]
    if card is not None:
        command += [str(card.library), card.endpoint, str(FREE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results: list[dict[str, list[str]]] = json.loads(done.stdout)
    return results


LOADS: list[Load] = [
    (0, True, []),
    (2, True, []),
    (2, False, []),
    (-1, True, []),
    (-1, False, []),
    (-1, True, ["attn_(k|v)"]),
    (4, True, [r"blk\.(1|2)\.ffn_(gate|up|down)\.weight"]),
]


@pytest.mark.parametrize("ftype", ["F16", "Q4_K_M"])
def test_wherever_layers_and_their_cache_lie_the_logits_are_the_cpus(
    four_layers: Path, card: Card, ftype: DecoderFtype
) -> None:
    path = four_layers / Bundle.read(four_layers).decoder(ftype).file
    (on_cpu,) = run(path, LOADS[:1])
    before = len(card.granted())
    for load, result in zip(LOADS, run(path, LOADS, card), strict=True):
        assert result["logits"] == on_cpu["logits"], load
    assert len(card.granted()) > before
    assert card.refused() == []


def test_layers_and_tensors_lie_where_they_were_put(four_layers: Path, card: Card) -> None:
    path = four_layers / Bundle.read(four_layers).decoder("F16").file
    results = run(path, [LOADS[0], LOADS[1], LOADS[5]], card)
    offloaded = [line.partition("offloaded ")[2] for result in results for line in result["lines"]]
    assert [words for words in offloaded if words] == [f"{n}/5 layers to GPU" for n in (0, 2, 5)]
    kept = [line.split()[1] for line in results[-1]["lines"] if "overridden to CPU" in line]
    assert sorted(kept) == sorted(
        f"blk.{block}.attn_{matrix}.{kind}"
        for block in range(4)
        for matrix in "kv"
        for kind in ("weight", "bias")
    )
