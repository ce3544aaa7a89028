"""Memory of a vision tower, against what onnxruntime takes."""

import subprocess
import sys
from pathlib import Path

import pytest

from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.tower_memory import tower_memory

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
shape = session.get_inputs()[0].shape[1:]
session.run(["image_embeds"], {"pixel_values": np.zeros((int(sys.argv[2]), *shape), np.float32)})
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
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(batch)], capture_output=True, text=True, check=True
    )
    assert predicted.weights + predicted.activations == pytest.approx(int(done.stdout), rel=0.1)
