"""Memory of the decoder's int8 layers in onnxruntime. Measured: docs/hardware.md."""

from typing import Final

from acestep_gguf.bundle.prefill_info import PrefillLayout
from acestep_gguf.plan.decoder_memory import DecoderShape

F32: Final = 4
SESSION_BYTES: Final = 3 * 2**20
# Positions from which on int8 layers are faster than llama.cpp: a call lays out all weights anew.
LEAST_ROWS: Final = 192
# Positions that a call computes at most: more make its products no faster, and take more memory.
MOST_ROWS: Final = 1024
# Attention keeps a weight for each head, position and position before: so many bytes at most.
ATTENTION_BYTES: Final = 2**28


def rows_at_once(n_head: int, n_total: int) -> int:
    """Positions of one call, where the last of all has the number ``n_total`` - 1."""
    return max(1, min(MOST_ROWS, ATTENTION_BYTES // (F32 * n_head * n_total)))


def activation_bytes(shape: DecoderShape, n: int, n_total: int) -> int:
    """Anonymous memory while ``n`` positions are read, of ``n_total`` when that is done.

    onnxruntime keeps at most six arrays of the MLP's width for each position of a call, one of them in uint8
    besides, one of the decoder's, and attention's weights; the hidden states of all positions, twice; keys
    and values of a layer before a call and behind it; tables of cosines and sines, and four more to compute
    them.
    """
    rows = min(n, rows_at_once(shape.n_head, n_total))
    mlp = rows * ((6 * F32 + 1) * shape.n_ff + F32 * shape.n_embd)
    attention = F32 * rows * shape.n_head * n_total
    layer = 4 * F32 * n_total * shape.n_embd_gqa
    tables = 6 * F32 * n_total * shape.n_embd_head // 2
    return SESSION_BYTES + mlp + attention + 2 * F32 * n * shape.n_embd + layer + tables


def streamed_bytes(layout: PrefillLayout) -> int:
    """Weights in memory at a time where each layer is read when its turn comes, and the next one ahead."""
    return 2 * layout.stride
