"""safetensors files, read lazily: a bounded header reader, and tensors that are read row by row.

The format is https://huggingface.co/docs/safetensors: 8 bytes of header length, a JSON header, then the
tensors' bytes without gaps. Rows are read with pread, not mmap: a file that shrinks is an error, no SIGBUS.
Not the safetensors library: through NumPy it reads neither bfloat16 nor float8, and never rows as raw bytes.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.json_file import parse_json
from acestep_gguf.errors import CheckpointError, SourceLostError

MAX_HEADER_BYTES: Final = 100_000_000
MAX_DIMS: Final = 8

BITS: Final = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


def _bf16_to_f32(raw: NDArray[np.uint16]) -> NDArray[np.float32]:
    # A bfloat16 is the upper half of a float32.
    bits = np.empty(raw.shape, np.uint32)
    np.left_shift(raw, np.uint32(16), out=bits)
    return bits.view(np.float32)


# How the bytes of a weight become float32: the dtype they are read as, and what is done to it. All are exact.
DECODERS: Final[dict[str, tuple[str, Callable[[Any], NDArray[np.float32]]]]] = {
    "F32": ("<f4", lambda raw: raw),
    "F16": ("<f2", lambda raw: raw.astype(np.float32)),
    "BF16": ("<u2", _bf16_to_f32),
}


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """A tensor in a file: ``n_bytes`` at ``offset`` from the file's beginning."""

    file: "SafetensorsFile"
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int

    @property
    def stamp(self) -> str:
        return self.file.stamp

    def check(self) -> None:
        """Refuse a tensor that does not hold weights.

        Raises:
            CheckpointError: its numbers are not floats of a known kind.
        """
        if self.dtype not in DECODERS:
            raise CheckpointError(
                f"tensor {self.name} is {self.dtype}: save the weights as bfloat16, float16 or float32."
            )

    def read(self) -> NDArray[np.float32]:
        """The whole tensor as float32."""
        n_rows = prod(self.shape[:-1])
        return self.read_rows(0, n_rows).reshape(self.shape)

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows ``start`` to ``stop`` as float32 [stop - start, shape[-1]]; a vector is one row. Thread-safe.

        Raises:
            CheckpointError: a weight is NaN or infinite, or the file ended early or cannot be read.
        """
        self.check()
        dtype, decode = DECODERS[self.dtype]
        n_per_row = self.shape[-1]
        raw = np.empty((stop - start, n_per_row), dtype)
        self.file.read_into(raw, self.offset + start * n_per_row * raw.itemsize)
        rows = decode(raw)
        if not np.isfinite(rows).all():
            raise CheckpointError(f"tensor {self.name} has NaN or infinite weights: get the file again.")
        return rows

    def read_bytes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Raw bytes ``start`` to ``stop`` of the tensor."""
        raw = np.empty(min(stop, self.n_bytes) - start, np.uint8)
        self.file.read_into(raw, self.offset + start)
        return raw


class SafetensorsFile:
    """A safetensors file, open until its context ends; ``stamp`` tells its state apart from any other.

    Raises:
        CheckpointError: missing, or its header does not describe the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: get the whole checkpoint.")
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise self._damaged(f"cannot be read, {error.strerror}") from error
        try:
            self.n_bytes = os.fstat(self._fd).st_size
            self.stamp = self._read_stamp()
            self.header = self._read_header()
            self.tensors = self._parse_header()
        except CheckpointError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; its tensors can no longer be read."""
        os.close(self._fd)

    def check_unchanged(self) -> None:
        """Check that the file has not been written to since it was opened.

        Raises:
            SourceLostError: it has.
        """
        if self._read_stamp() != self.stamp:
            raise SourceLostError(f"{self.path} was changed while it was read: give the command again.")

    def read_into(self, array: NDArray[Any], offset: int) -> None:
        """Fill ``array``, which must be contiguous, with the bytes at ``offset``.

        Raises:
            SourceLostError: the file ended early, or cannot be read.
        """
        view = array.reshape(-1).view(np.uint8).data
        done = 0
        while done < view.nbytes:
            try:
                n_read = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise self._lost(f"cannot be read, {error.strerror}") from error
            if n_read == 0:
                raise self._lost("it ended early")
            done += n_read

    def _read_stamp(self) -> str:
        status = os.fstat(self._fd)
        return f"{self.path.name} {status.st_size} {status.st_mtime_ns}"

    def _read_header(self) -> bytes:
        if self.n_bytes < 8:
            raise self._damaged(f"it has {self.n_bytes} bytes")
        length = np.empty(1, "<u8")
        self.read_into(length, 0)
        n_header = int(length[0])
        if n_header > min(MAX_HEADER_BYTES, self.n_bytes - 8):
            raise self._damaged(f"its header claims {n_header} bytes, the file has {self.n_bytes}")
        header = np.empty(n_header, np.uint8)
        self.read_into(header, 8)
        return header.tobytes()

    def _parse_header(self) -> dict[str, SafetensorsTensor]:
        try:
            text = self.header.decode()
        except UnicodeDecodeError as error:
            raise self._damaged("its header is not UTF-8") from error
        entries = parse_json(text, self.path)
        entries.pop("__metadata__", None)
        tensors = {name: self._parse_entry(name, entry) for name, entry in entries.items()}
        self._check_no_gaps(list(tensors.values()))
        return tensors

    def _parse_entry(self, name: str, entry: Any) -> SafetensorsTensor:
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
                pass
            case _:
                raise self._damaged(f"tensor {name!r} is not described by dtype, shape and data_offsets")
        if dtype not in BITS:
            raise self._damaged(f"tensor {name!r} has the unknown dtype {dtype!r}")
        if len(shape) > MAX_DIMS or any(type(dim) is not int or not 0 <= dim < 2**48 for dim in shape):
            raise self._damaged(f"tensor {name!r} has the absurd shape {shape}")
        if not 0 <= begin <= end or (end - begin) * 8 != prod(shape) * BITS[dtype]:
            raise self._damaged(f"tensor {name!r}, {dtype} {shape}, does not fit its data_offsets")
        offset = 8 + len(self.header) + begin
        return SafetensorsTensor(self, name, dtype, tuple(shape), offset, end - begin)

    def _check_no_gaps(self, tensors: list[SafetensorsTensor]) -> None:
        """Tensors must lie side by side from the header to the file's end: nothing overlaps or is hidden."""
        expected = 8 + len(self.header)
        for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.n_bytes)):
            if tensor.offset != expected:
                problem = "overlaps another tensor" if tensor.offset < expected else "leaves a gap before it"
                raise self._damaged(f"tensor {tensor.name!r} {problem}")
            expected += tensor.n_bytes
        if expected != self.n_bytes:
            raise self._damaged(f"its tensors need {expected} bytes, the file has {self.n_bytes}")

    def _damaged(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged ({problem}): get the file again.")

    def _lost(self, problem: str) -> SourceLostError:
        return SourceLostError(f"{self.path} is damaged ({problem}): get the file again.")
