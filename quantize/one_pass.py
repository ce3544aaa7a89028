"""One pass over a decoder's tensors: each is read once and written to every file.

Worker threads read and quantize chunks of rows; the calling thread takes the results in order, so that every
file is written from its beginning to its end and hashed on the way. What files share is computed once.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, prod
from types import MappingProxyType
from typing import Final, Protocol, runtime_checkable

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from acestep_gguf.errors import CheckpointError
from acestep_gguf.quantize.ggml import block_size, quantize_rows, row_size
from acestep_gguf.quantize.gguf_layout import GgufLayout
from acestep_gguf.quantize.staging import StagedFile

# Weights in a chunk: 4 MiB as float32, enough to keep a thread busy for milliseconds.
MAX_CHUNK_WEIGHTS: Final = 2**20
# For all chunks in flight, whatever the number of threads and outputs.
MAX_BUFFER_BYTES: Final = 2**30
CHUNKS_PER_THREAD: Final = 2
# A weight as it is read, as float32, and whether it is finite.
READING_BYTES_PER_WEIGHT: Final = 4 + 4 + 1

Blocks = dict[GGMLQuantizationType, NDArray[np.uint8]]


class TensorSource(Protocol):
    """A tensor that can be read in rows, from several threads at once."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions, rows first."""

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` as float32 [stop - start, shape[-1]]; a vector is one row."""


@runtime_checkable
class StoredBlocks(TensorSource, Protocol):
    """A tensor that is stored in blocks; a file that wants their type gets them as they are."""

    @property
    def qtype(self) -> GGMLQuantizationType:
        """Type of the blocks."""

    def read_blocks(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows ``start`` to ``stop`` as uint8 [stop - start, row_size]."""


@dataclass(frozen=True, slots=True)
class GgufOutput:
    """A GGUF file to write: its header, and where its bytes go."""

    layout: GgufLayout
    file: StagedFile


@dataclass(frozen=True, slots=True)
class _Chunk:
    tensor: int
    start: int
    stop: int
    is_last: bool


def write_ggufs(
    tensors: Sequence[tuple[str, TensorSource]],
    outputs: Sequence[GgufOutput],
    *,
    n_threads: int,
    importance: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
) -> None:
    """Write ``outputs``, whose layouts hold ``tensors`` (name, source) in the same order.

    Each tensor, with the padding behind it, is a step of each file: files that have steps already are carried
    on with. ``importance`` has float32 [row length] by tensor name; it weighs the errors within a row.

    Raises:
        CheckpointError: a weight does not fit the type it gets, or a source cannot be read.
    """
    for output in outputs:
        if output.file.n_steps == 0:
            output.file.write(output.layout.header)
    n_done = [output.file.n_steps for output in outputs]

    def wanting(tensor: int) -> list[GgufOutput]:
        return [output for output, n in zip(outputs, n_done, strict=True) if n <= tensor]

    def quantize(chunk: _Chunk) -> Blocks:
        name, source = tensors[chunk.tensor]
        qtypes = {output.layout.tensors[chunk.tensor].qtype for output in wanting(chunk.tensor)}
        return _quantize_chunk(name, source, chunk, qtypes, importance.get(name))

    shapes = [source.shape for _, source in tensors]
    n_weights = _chunk_weights([output.layout for output in outputs], n_threads)
    with ThreadPoolExecutor(n_threads) as pool:
        pending: deque[tuple[_Chunk, Future[Blocks]]] = deque()

        def write_next() -> None:
            chunk, future = pending.popleft()
            _write_chunk(chunk, future.result(), wanting(chunk.tensor))

        try:
            for chunk in _chunks(shapes, min(n_done, default=0), n_weights):
                pending.append((chunk, pool.submit(quantize, chunk)))
                if len(pending) > CHUNKS_PER_THREAD * n_threads:
                    write_next()
            while pending:
                write_next()
        finally:
            for _, future in pending:
                future.cancel()


def buffer_bytes(layouts: Sequence[GgufLayout], n_threads: int) -> int:
    """Memory that ``write_ggufs`` needs for the chunks in flight, at most."""
    return _chunk_weights(layouts, n_threads) * _bytes_per_weight(layouts, n_threads)


def _chunk_weights(layouts: Sequence[GgufLayout], n_threads: int) -> int:
    return min(MAX_CHUNK_WEIGHTS, MAX_BUFFER_BYTES // _bytes_per_weight(layouts, n_threads))


def _bytes_per_weight(layouts: Sequence[GgufLayout], n_threads: int) -> int:
    """Of all chunks in flight together: being quantized, or waiting to be written in every type."""
    qtypes = {tensor.qtype for layout in layouts for tensor in layout.tensors}
    quantized = sum(ceil(row_size(qtype, block_size(qtype)) / block_size(qtype)) for qtype in qtypes)
    return n_threads * (READING_BYTES_PER_WEIGHT + (CHUNKS_PER_THREAD + 1) * quantized)


def _chunks(shapes: Sequence[tuple[int, ...]], first: int, n_weights: int) -> Iterator[_Chunk]:
    """Rows of the tensors from number ``first`` on, about ``n_weights`` at once."""
    for tensor, shape in enumerate(shapes[first:], first):
        n_rows = prod(shape[:-1])
        step = max(1, n_weights // shape[-1])
        for start in range(0, n_rows, step):
            stop = min(start + step, n_rows)
            yield _Chunk(tensor, start, stop, stop == n_rows)


def _quantize_chunk(
    name: str,
    source: TensorSource,
    chunk: _Chunk,
    qtypes: set[GGMLQuantizationType],
    importance: NDArray[np.float32] | None,
) -> Blocks:
    blocks = {}
    if isinstance(source, StoredBlocks) and source.qtype in qtypes:
        blocks[source.qtype] = source.read_blocks(chunk.start, chunk.stop)
    if missing := qtypes - blocks.keys():
        rows = source.read_rows(chunk.start, chunk.stop)
        for qtype in missing:
            quantized = quantize_rows(rows, qtype, importance)
            if quantized is None:
                raise CheckpointError(
                    f"tensor {name} has weights, or an importance, too large for {qtype.name}: "
                    "convert to BF16 or F32."
                )
            blocks[qtype] = quantized
    return blocks


def _write_chunk(chunk: _Chunk, blocks: Blocks, outputs: Sequence[GgufOutput]) -> None:
    for output in outputs:
        placed = output.layout.tensors[chunk.tensor]
        output.file.write(blocks[placed.qtype].data)
        if chunk.is_last:
            output.file.pad_to(placed.padded_end)
            output.file.end_step()
