"""Memory of a vision tower, against what onnxruntime takes."""

import subprocess
import sys
from pathlib import Path

import pytest

from acestep_gguf.convert import convert_checkpoint
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.tower_memory import tower_memory
from tests.support.tiny_idefics2 import TinyIdefics2

# A process of its own: loads the tower, encodes, and prints the anonymous memory before and at its peak.
CHILD = """
import sys, threading, time
import numpy as np, onnxruntime

def anonymous():
    status = open("/proc/self/status").read()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])

peak, running = 0, True
def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.002)

before = anonymous()
threading.Thread(target=watch, daemon=True).start()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
shape = [int(side) for side in sys.argv[2:]]
session.run(["image_embeds"], {"pixel_values": np.zeros(shape, np.float32)})
running = False
print(max(peak, anonymous()) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells anonymous memory")
@pytest.mark.parametrize(("precision", "batch"), [("float32", 1), ("float32", 4), ("int8", 1)])
def test_the_peak_is_predicted(wide_tower: BundleModel, precision: str, batch: int) -> None:
    record = wide_tower.bundle.vision_file(precision)
    path, image = wide_tower.folder / record.file, wide_tower.bundle.image
    assert image is not None
    predicted = tower_memory(path, record, image, batch)
    peak = measured(path, batch, image.size.height)
    assert predicted.weights + predicted.activations == pytest.approx(peak, rel=0.1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells anonymous memory")
def test_the_peak_of_a_tower_with_a_resampler_is_predicted(tmp_path: Path) -> None:
    """It comes before the resampler, for the largest picture."""
    checkpoint = TinyIdefics2(
        decoder="mistral",
        hidden_size=1024,
        intermediate_size=3584,
        vision_hidden_size=288,
        vision_intermediate_size=1076,
        vision_n_layers=1,
        n_layers=1,
        depth=1,
        patch_size=14,
        image_size=980,
        longest_edge=980,
        n_latents=64,
    ).write(tmp_path / "checkpoint")
    bundle = convert_checkpoint(checkpoint, tmp_path / "bundle", ["Q8_0"], vision=["float32"])
    record, (_, image) = bundle.vision_file("float32"), bundle.tower()
    path = tmp_path / "bundle" / record.file
    predicted = tower_memory(path, record, image)
    peak = measured(path, 1, image.size.height)
    assert predicted.weights + predicted.activations == pytest.approx(peak, rel=0.1)


def measured(path: Path, batch: int, side: int) -> int:
    """Bytes of anonymous memory that onnxruntime takes at its peak for pictures of ``side``."""
    shape = [str(number) for number in (batch, 3, side, side)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), *shape], capture_output=True, text=True, check=True
    )
    return int(done.stdout)
