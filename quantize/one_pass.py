"""One pass over a decoder's tensors: each is read once and written to every file.

Worker threads read and quantize chunks of rows; the calling thread takes the results in order, so that every
file is written from its beginning to its end and hashed on the way. What files share is computed once.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Final, Protocol

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from acestep_gguf.errors import CheckpointError
from acestep_gguf.quantize.ggml import quantize_rows
from acestep_gguf.quantize.gguf_layout import GgufLayout
from acestep_gguf.quantize.staging import StagedFile

# Weights in a chunk, 4 MiB as float32: large enough to keep a thread busy for milliseconds, small enough that
# all chunks in flight stay far below a gigabyte.
CHUNK_WEIGHTS: Final = 2**20

Blocks = dict[GGMLQuantizationType, NDArray[np.uint8]]


class TensorSource(Protocol):
    """A tensor that can be read in rows, from several threads at once."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` as float32 [stop - start, shape[-1]]; a vector is one row."""


@dataclass(frozen=True, slots=True)
class GgufOutput:
    """A file to write, and what goes into it."""

    layout: GgufLayout
    file: StagedFile


@dataclass(frozen=True, slots=True)
class _Chunk:
    tensor: int
    start: int
    stop: int


def write_ggufs(
    tensors: Sequence[tuple[str, TensorSource]], outputs: Sequence[GgufOutput], *, n_threads: int
) -> None:
    """Write ``outputs``, whose layouts hold ``tensors`` (name, source) in the same order.

    Raises:
        CheckpointError: a weight does not fit the type it gets, or a source cannot be read.
    """
    for output in outputs:
        output.file.write(output.layout.header)

    def quantize(chunk: _Chunk) -> Blocks:
        name, source = tensors[chunk.tensor]
        qtypes = {output.layout.tensors[chunk.tensor].qtype for output in outputs}
        return _quantize_chunk(name, source.read_rows(chunk.start, chunk.stop), qtypes)

    with ThreadPoolExecutor(n_threads) as pool:
        pending: deque[tuple[_Chunk, Future[Blocks]]] = deque()
        try:
            for chunk in _chunks([source.shape for _, source in tensors]):
                pending.append((chunk, pool.submit(quantize, chunk)))
                if len(pending) > 2 * n_threads:
                    _write_next(pending, outputs)
            while pending:
                _write_next(pending, outputs)
        finally:
            for _, future in pending:
                future.cancel()

    for output in outputs:
        output.file.pad_to(output.layout.n_bytes)


def _chunks(shapes: Sequence[tuple[int, ...]]) -> Iterator[_Chunk]:
    for tensor, shape in enumerate(shapes):
        n_rows = prod(shape[:-1])
        step = max(1, CHUNK_WEIGHTS // shape[-1])
        for start in range(0, n_rows, step):
            yield _Chunk(tensor, start, min(start + step, n_rows))


def _quantize_chunk(name: str, rows: NDArray[np.float32], qtypes: set[GGMLQuantizationType]) -> Blocks:
    blocks = {}
    for qtype in qtypes:
        quantized = quantize_rows(rows, qtype)
        if quantized is None:
            raise CheckpointError(
                f"tensor {name} has weights too large for {qtype.name}: convert to BF16 or F32."
            )
        blocks[qtype] = quantized
    return blocks


def _write_next(pending: deque[tuple[_Chunk, Future[Blocks]]], outputs: Sequence[GgufOutput]) -> None:
    chunk, future = pending.popleft()
    blocks = future.result()
    for output in outputs:
        placed = output.layout.tensors[chunk.tensor]
        if chunk.start == 0:
            output.file.pad_to(placed.offset)
        output.file.write(blocks[placed.qtype].data)
