"""A GGUF file as a source: its metadata as it stands, its tensors row by row.

Rows are read with pread, not mmap: a file that shrinks is an error, no SIGBUS.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from gguf import GGMLQuantizationType as QType
from numpy.typing import NDArray

from acestep_gguf.bundle.decoder_info import decoder_info
from acestep_gguf.bundle.gguf_header import TENSOR_TYPES, TensorInfo, read_gguf_header
from acestep_gguf.errors import BundleError, SourceLostError
from acestep_gguf.quantize.ggml import are_sound, dequantize_rows, row_size
from acestep_gguf.quantize.recipes import FLOAT_TYPES, TensorShape, layer_order

# llama.cpp's limit, GGML_MAX_NAME with its final zero.
MAX_NAME_BYTES: Final = 63

# A row is the least that is held in memory; those of the described model have 27,648 weights.
MAX_ROW_LENGTH: Final = 2**24

# ggml cannot turn these into float32.
UNREADABLE_TYPES: Final = frozenset({QType.I8, QType.I16, QType.I32, QType.I64, QType.F64})
READABLE_TYPES: Final = frozenset(QType[kind.name] for kind in TENSOR_TYPES.values()) - UNREADABLE_TYPES


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor in a file: rows of blocks of ``qtype``, from ``offset`` on."""

    file: "GgufFile"
    name: str
    shape: tuple[int, ...]
    qtype: QType
    offset: int

    @property
    def stamp(self) -> str:
        """State of the file: another one when it was changed or replaced."""
        return self.file.stamp

    def check(self) -> None:
        """Nothing is left to check: the header was checked when it was read."""

    @property
    def is_quantized(self) -> bool:
        """Whether precision was lost before."""
        return self.qtype not in FLOAT_TYPES

    def read(self) -> NDArray[np.float32]:
        """The whole tensor as float32. Raises the same as ``read_rows``."""
        return self.read_rows(0, prod(self.shape[:-1])).reshape(self.shape)

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` as float32 [stop - start, shape[-1]]; a vector is one row. Thread-safe.

        Raises:
            BundleError: a weight is NaN or infinite.
            SourceLostError: the file ended early, or cannot be read.
        """
        return dequantize_rows(self.read_blocks(start, stop), self.qtype)

    def read_blocks(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The same rows as they are stored, uint8 [stop - start, row_size]. Raises the same."""
        n_bytes = row_size(self.qtype, self.shape[-1])
        blocks = np.empty((stop - start, n_bytes), np.uint8)
        self.file.read_into(blocks, self.offset + start * n_bytes)
        if not are_sound(blocks, self.qtype):
            raise self.file.damaged(f"tensor {self.name!r} has NaN or infinite weights")
        return blocks


class GgufFile:
    """A GGUF file, open inside its context; ``stamp`` is another one when it was changed or replaced.

    Raises:
        BundleError: missing, damaged, or a part of a split file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if os.path.exists(path) and not os.path.isfile(path):
            raise BundleError(f"{path} is not a file: name a GGUF file.")
        self.header = read_gguf_header(path)
        if self.header.metadata.get("split.count", 1) not in (0, 1):
            raise BundleError(f"{path} is a part of a split file: join it with llama-gguf-split --merge.")

    def __enter__(self) -> Self:
        try:
            self._fd = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise self._lost(f"it cannot be read, {error.strerror}") from error
        status = os.fstat(self._fd)
        self.stamp = f"{self.path.name} {status.st_size} {status.st_mtime_ns}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def read_into(self, blocks: NDArray[np.uint8], offset: int) -> None:
        """Fill ``blocks``, which must be contiguous, with the bytes at ``offset``.

        Raises:
            SourceLostError: the file ended early, or cannot be read.
        """
        view = blocks.reshape(-1).data
        done = 0
        while done < view.nbytes:
            try:
                n_read = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise self._lost(f"it cannot be read, {error.strerror}") from error
            if n_read == 0:
                raise self._lost("it ended early")
            done += n_read

    def damaged(self, problem: str) -> BundleError:
        """What to raise when the file contradicts itself."""
        return BundleError(f"{self.path} is damaged ({problem}): convert the checkpoint or copy it again.")

    def tensor(self, info: TensorInfo, *, max_dims: int = 2) -> GgufTensor:
        """The tensor that ``info`` of the header describes.

        Raises:
            BundleError: its type cannot hold weights, or it has an absurd name or shape.
        """
        qtype = QType[info.type.name]
        if qtype not in READABLE_TYPES:
            raise self.damaged(f"tensor {info.name!r} has the type {qtype.name}, which cannot hold weights")
        if len(info.name.encode()) > MAX_NAME_BYTES:
            raise self.damaged(f"a tensor's name has more than {MAX_NAME_BYTES} bytes")
        # Like llama.cpp, without dimensions of one at the end.
        dims = list(info.dims)
        while len(dims) > 1 and dims[-1] == 1:
            dims.pop()
        if len(dims) > max_dims or dims[0] > MAX_ROW_LENGTH:
            raise self.damaged(f"tensor {info.name!r} has the absurd shape {dims}")
        return GgufTensor(self, info.name, tuple(reversed(dims)), qtype, info.offset)

    def _lost(self, problem: str) -> SourceLostError:
        return SourceLostError(f"{self.path} was lost ({problem}): bring it back and try again.")


class GgufSource(GgufFile):
    """A decoder file; its tensors are in llama-quantize's order.

    Raises:
        BundleError: missing, damaged, or a part of a split file.
        UnsupportedModelError: of another architecture.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.info = decoder_info(self.header)
        tensors = (self.tensor(info) for info in self.header.tensors)
        self.tensors = sorted(tensors, key=lambda tensor: layer_order(tensor.name))
        self._check_layers()

    @cached_property
    def metadata(self) -> dict[str, bytes]:
        """Every key with its encoded value, in the file's order."""
        return {key: bytes(value) for key, value in self.header.encoded.items()}

    @property
    def shapes(self) -> list[TensorShape]:
        """Name, shape and type of each tensor."""
        return [TensorShape(tensor.name, tensor.shape, tensor.qtype) for tensor in self.tensors]

    def _check_layers(self) -> None:
        """The recipes count layers by their tensors, llama.cpp by the metadata: both must agree."""
        for kind in ("attn_v", "ffn_down"):
            found = {tensor.name for tensor in self.tensors if tensor.name.endswith(f".{kind}.weight")}
            expected = {f"blk.{bid}.{kind}.weight" for bid in range(self.info.block_count)}
            if found != expected:
                raise self.damaged(f"its {self.info.block_count} layers do not have one {kind} each")
