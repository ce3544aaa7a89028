import subprocess
import sys
from pathlib import Path

PLAYS_A_CARD = """
import sys
from collections import deque
from pathlib import Path

from acestep_gguf.llama.backend import backend
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.devices import gpu_devices
from acestep_gguf.llama.params import ContextParams, ModelParams
from acestep_gguf.plan.machine import this_machine
from tests.support.played_card import register_card

log = backend()
log.lines = deque(maxlen=10_000)
assert gpu_devices() == []
register_card("a played card", 5 * 2**30)
assert gpu_devices() == [("a played card", 5 * 2**30)]
(gpu,) = this_machine().gpus
assert (gpu.name, gpu.memory) == ("a played card", 5 * 2**30)

for n_gpu_layers, cpu_tensors in ((0, ()), (2, ()), (-1, ("attn_(k|v)",))):
    params = ModelParams(n_gpu_layers=n_gpu_layers, cpu_tensors=cpu_tensors)
    with Model(Path(sys.argv[1]), params) as model:
        print("\\n".join(log.lines))
        with Context(model, ContextParams(n_ctx=32)) as context:
            context.decode_tokens([1, 2, 3], 0, n_outputs=1)
            context.logits()
"""


def test_layers_and_tensors_lie_where_they_were_put(decoder_file: Path) -> None:
    command = [sys.executable, "-c", PLAYS_A_CARD, str(decoder_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition("offloaded ")[2] for line in lines if "offloaded" in line] == [
        "0/3 layers to GPU",
        "2/3 layers to GPU",
        "3/3 layers to GPU",
    ]
    kept = [line.split()[1] for line in lines if "overridden to CPU" in line]
    assert kept == [f"blk.{block}.attn_{matrix}.{kind}" for block in (0, 1) for matrix, kind in (
        ("k", "weight"), ("v", "weight"), ("k", "bias"), ("v", "bias"),
    )]  # fmt: skip
