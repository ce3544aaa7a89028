"""Memory of the vision tower in onnxruntime, from its ONNX header. Measured: docs/hardware.md."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.bundle.onnx_file import read_onnx
from acestep_gguf.bundle.schema import VisionFile

F32: Final = 4
SESSION_BYTES: Final = 3 * 2**20  # threads' stacks and what a session keeps beside weights
UP_PROJECTION: Final = re.compile(r"(v\.blk\.\d+\.ffn|mm)[._]up\.weight")
GATE: Final = "mm.gate.weight"
POSITIONS: Final = "v.position_embd.weight"


@dataclass(frozen=True, slots=True)
class TowerMemory:
    """Bytes of anonymous memory: weights as onnxruntime packs them, and activations at their peak."""

    weights: int
    activations: int


def tower_memory(path: Path, record: VisionFile, image: ImageSpec, batch: int = 1) -> TowerMemory:
    """Memory of the tower in the ONNX file ``path``, for ``batch`` pictures at once; we only encode one.

    onnxruntime packs each matrix anew, and then drops the mapped file. Its peak comes in an MLP: what stays
    of the arena's blocks by then is about three of the MLP's width and six of the tower's, for each position,
    of which several may become one token; the embeds come on top. The gated projection before a resampler is
    such an MLP, too, and wider; it keeps four of its width.
    """
    dims = {weight.name: weight.dims for weight in read_onnx(path).initializers}
    mlps = (dims for name, dims in dims.items() if UP_PROJECTION.match(name) and len(dims) == 2)
    hidden, mlp = max(mlps, key=max, default=(0, 0))
    hidden, mlp = min(hidden, mlp), max(hidden, mlp)  # matrices may be stored either way round
    positions = dims.get(POSITIONS, ())
    n_positions = positions[-2] if len(positions) > 1 else image.n_image_tokens + 1
    n_mlp = 4 if GATE in dims else 3
    values = n_positions * (6 * hidden + n_mlp * mlp) + image.n_image_tokens * image.n_embd
    return TowerMemory(weights=record.data.bytes, activations=SESSION_BYTES + F32 * batch * values)
