"""Importance matrices, as llama-imatrix writes them: for each tensor, the mean square of each of its inputs.

Both formats are read: GGUF (tensors ``NAME.in_sum2`` and ``NAME.counts``) and the older binary ``.dat``. The
reading and the arithmetic are those of common/imatrix-loader.cpp and tools/quantize/quantize.cpp of the
llama.cpp in llama-cpp-python 0.3.36, in float32 like there, so that blocks come out the same to the bit.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGMLQuantizationType as QType
from numpy.typing import NDArray

from acestep_gguf.bundle.gguf_header import MAGIC, GGUFHeader, StringArray, TensorInfo, read_gguf_header
from acestep_gguf.bundle.names import Ftype
from acestep_gguf.errors import BundleError, ImatrixError, UnsupportedModelError, UsageError
from acestep_gguf.quantize.ggml import NEED_IMPORTANCE
from acestep_gguf.quantize.gguf_layout import string, u32
from acestep_gguf.quantize.recipe_tables import WEIGHED_FTYPES, WEIGHED_TYPES
from acestep_gguf.quantize.recipes import EMBEDDINGS, OUTPUT, TensorShape, TypeChoice

# A dense model of 32B parameters has 16 MB; the bound keeps a hostile file from filling the memory.
MAX_BYTES: Final = 256 * 2**20
MAX_ENTRIES: Final = 2**16
MAX_NAME_BYTES: Final = 256
# llama.cpp keeps metadata values that are set from outside in 128 bytes with a final zero.
MAX_VALUE_BYTES: Final = 127

Importance = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Imatrix:
    """An importance matrix, read and checked; each of ``entries``, by tensor name, is float32 [n]."""

    path: Path
    entries: Mapping[str, Importance]
    n_chunks: int
    dataset: str | None

    @property
    def metadata(self) -> dict[str, bytes]:
        """What llama-quantize writes into a file that was made with it, as encoded values."""
        values = {"quantize.imatrix.file": string(_cut(str(self.path)))}
        if self.dataset is not None:
            values["quantize.imatrix.dataset"] = string(_cut(self.dataset))
        values["quantize.imatrix.entries_count"] = u32(len(self.entries))
        if self.n_chunks > 0:
            values["quantize.imatrix.chunks_count"] = u32(self.n_chunks)
        return values

    def importance_of(
        self, tensors: Sequence[TensorShape], choices: Mapping[str, TypeChoice]
    ) -> dict[str, Importance]:
        """The entries of the tensors that change their type; like llama.cpp's, one without does without.

        Raises:
            ImatrixError: an entry and the rows of its tensor differ in length.
        """
        found = {}
        for tensor in tensors:
            entry = self.entries.get(tensor.name)
            if entry is None or choices[tensor.name].qtype == tensor.stored_type:
                continue
            if len(entry) == tensor.shape[-1]:
                found[tensor.name] = entry
            elif tensor.name != EMBEDDINGS:  # the one mismatch that llama-quantize lets pass
                raise ImatrixError(
                    f"{self.path} is of another model (it has {len(entry)} values for {tensor.name}, whose "
                    f"rows have {tensor.shape[-1]}): make one with llama-imatrix from this model."
                )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ImatrixSums:
    """What a GGUF file of llama-imatrix has: by tensor name, sums of squares, float32 [n] for each of its
    matrices one after another, and counts of rows, float32 [n_matrices].
    """

    sums: Mapping[str, Importance]
    counts: Mapping[str, Importance]
    datasets: tuple[str, ...]
    n_chunks: int


def check_is_weighed(
    ftype: Ftype,
    tensors: Sequence[TensorShape],
    choices: Mapping[str, TypeChoice],
    importance: Mapping[str, Importance] | None,
) -> None:
    """Refuse what would be garbage without an importance matrix, by llama.cpp's rules.

    Raises:
        UsageError: ``ftype`` needs one, or the type of a tensor does.
        ImatrixError: there is one, which knows nothing of such a tensor.
    """
    if importance is None and ftype in WEIGHED_FTYPES:
        raise UsageError(
            f"{ftype} is garbage without an importance matrix: give one with imatrix=FILE.",
            settings=["imatrix"],
        )
    for tensor in tensors:
        qtype = choices[tensor.name].qtype
        is_exempt = tensor.name in (EMBEDDINGS, OUTPUT) and qtype not in NEED_IMPORTANCE
        is_weighed = qtype in WEIGHED_TYPES or (qtype == QType.Q2_K and ftype == "Q2_K_S")
        if not is_weighed or is_exempt or qtype == tensor.stored_type or tensor.name in (importance or {}):
            continue
        if importance is None:
            raise UsageError(
                f"{tensor.name} is garbage as {qtype.name} without an importance matrix: give one with "
                "imatrix=FILE, or choose another type.",
                settings=["imatrix"],
            )
        raise ImatrixError(
            f"the imatrix has no entry for {tensor.name}, which is garbage as {qtype.name} without: make one "
            "with more text, or choose another type."
        )


def read_imatrix(path: Path) -> Imatrix:
    """Read and check the file ``path``.

    Raises:
        ImatrixError: missing, in another format, damaged, or with values that no mean square has.
    """
    data = _read(path)
    imatrix = _read_gguf(path, data) if data.startswith(MAGIC) else _read_legacy(path, data)
    for name, entry in imatrix.entries.items():
        if not np.isfinite(entry).all() or (entry < 0).any():
            raise _damaged(path, f"values of {name!r} are negative, infinite or NaN")
    return imatrix


def read_sums(path: Path) -> ImatrixSums:
    """Read and check the file ``path`` as it is, undivided; in the older format it cannot be.

    Raises:
        ImatrixError: missing, in another format, damaged, or with values that no sum of squares has.
    """
    data = _read(path)
    if not data.startswith(MAGIC):
        raise ImatrixError(f"{path} is in the older format: let llama-imatrix write it as GGUF.")
    found = _sums_in_gguf(path, data)
    for name, sums in found.sums.items():
        numbers = np.concatenate([sums, found.counts[name]])
        if not np.isfinite(numbers).all() or (numbers < 0).any():
            raise _damaged(path, f"values of {name!r} are negative, infinite or NaN")
    return found


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise ImatrixError(f"{path} is not a file: choose another imatrix.")
        n_bytes = path.stat().st_size
        if n_bytes > MAX_BYTES:
            raise ImatrixError(f"{path} has {n_bytes} bytes, far more than an imatrix: choose another file.")
        return path.read_bytes()
    except OSError as error:
        raise ImatrixError(f"{path} cannot be read ({error.strerror}): choose another imatrix.") from error


def _read_gguf(path: Path, data: bytes) -> Imatrix:
    found = _sums_in_gguf(path, data)
    entries = {name: _mean_squares(path, name, sums, found.counts[name]) for name, sums in found.sums.items()}
    dataset = found.datasets[0] if found.datasets else None
    return Imatrix(path=path, entries=entries, n_chunks=found.n_chunks, dataset=dataset)


def _sums_in_gguf(path: Path, data: bytes) -> ImatrixSums:
    try:
        header = read_gguf_header(path)
    except (BundleError, UnsupportedModelError) as error:
        raise _damaged(path, "its GGUF header does not describe it") from error
    sums, counts = _suffixed(header, ".in_sum2"), _suffixed(header, ".counts")
    if not sums or sums.keys() != counts.keys():
        raise _damaged(path, "its .counts and .in_sum2 do not come in pairs")
    for name in sums:
        if sums[name].type.name != "F32" or counts[name].type.name != "F32":
            raise _damaged(path, f"sums or counts of {name!r} are not float32")
    datasets = header.metadata.get("imatrix.datasets")
    n_chunks = header.metadata.get("imatrix.chunk_count")
    chunk_size = header.metadata.get("imatrix.chunk_size")
    if not isinstance(datasets, StringArray) or type(n_chunks) is not int or type(chunk_size) is not int:
        raise _damaged(path, "imatrix.datasets, imatrix.chunk_count or imatrix.chunk_size is missing")
    return ImatrixSums(
        sums={name: _values(sums[name], data) for name in sorted(sums)},
        counts={name: _values(counts[name], data) for name in sorted(sums)},
        datasets=tuple(map(_text, datasets.read())),
        n_chunks=_u32(path, n_chunks),
    )


def _mean_squares(path: Path, name: str, sums: Importance, counts: Importance) -> Importance:
    """``sums``, n values for each of the matrices that ``counts`` counts, divided; without a count: ones."""
    # "not …": NaN, too
    if len(sums) % len(counts) or not (np.abs(counts) < 2**31).all():
        raise _damaged(path, f"counts of {name!r} do not fit its sums")
    rounded = np.floor(counts.astype(np.float64) + 0.5).astype(np.float32)[:, np.newaxis]
    matrices = sums.reshape(len(counts), -1)
    means = np.ones_like(matrices)
    with np.errstate(invalid="ignore", over="ignore"):
        np.divide(matrices, rounded, out=means, where=rounded > 0)
    return means.reshape(-1)


def _read_legacy(path: Path, data: bytes) -> Imatrix:
    """The binary format: entries of name, number of calls and sums; then, perhaps, chunks and dataset."""
    reader = _LegacyReader(path, data)
    n_entries = reader.i32()
    if not 1 <= n_entries <= MAX_ENTRIES:
        raise _damaged(path, "it does not hold an importance matrix")
    entries: dict[str, Importance] = {}
    for _ in range(n_entries):
        name = _text(reader.take(reader.length(MAX_NAME_BYTES)))
        n_calls = reader.i32()
        n_bytes = 4 * reader.length(MAX_BYTES // 4)
        if name in entries or not n_bytes:
            raise _damaged(path, f"{name!r} stands in it twice, or has no values")
        sums = np.frombuffer(reader.take(n_bytes), "<f4")
        with np.errstate(invalid="ignore"):
            entries[name] = np.divide(sums, np.float32(max(1, n_calls)), dtype=np.float32)
    n_chunks, dataset = 0, None
    if not reader.is_at_end:
        n_chunks = reader.i32()
    if not reader.is_at_end:
        dataset = _text(reader.take(reader.length(MAX_BYTES))) or None
    return Imatrix(path=path, entries=entries, n_chunks=max(0, n_chunks), dataset=dataset)


class _LegacyReader:
    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data
        self.position = 0

    @property
    def is_at_end(self) -> bool:
        return self.position == len(self.data)

    def i32(self) -> int:
        (number,) = struct.unpack("<i", self.take(4))
        return int(number)

    def length(self, most: int) -> int:
        length = self.i32()
        if not 0 <= length <= most:
            raise _damaged(self.path, f"it claims a length of {length}")
        return length

    def take(self, n_bytes: int) -> bytes:
        taken = self.data[self.position : self.position + n_bytes]
        if len(taken) < n_bytes:
            raise _damaged(self.path, "it ends early")
        self.position += n_bytes
        return taken


def _suffixed(header: GGUFHeader, suffix: str) -> dict[str, TensorInfo]:
    return {
        tensor.name.removesuffix(suffix): tensor for tensor in header.tensors if tensor.name.endswith(suffix)
    }


def _values(tensor: TensorInfo, data: bytes) -> Importance:
    return np.frombuffer(data, "<f4", tensor.n_elements, tensor.offset)


def _u32(path: Path, number: int) -> int:
    if not 0 <= number < 2**32:
        raise _damaged(path, f"its number of chunks is {number}")
    return number


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="replace")


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:MAX_VALUE_BYTES].decode(errors="ignore")


def _damaged(path: Path, what: str) -> ImatrixError:
    return ImatrixError(f"{path} cannot be used as an imatrix ({what}): make it with llama-imatrix again.")
