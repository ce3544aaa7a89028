"""What tells a checkpoint's weights apart from those of another training.

A sample is read at once, to refuse another model before anything is written. Only the hash of every byte sees
all that training changes. It is made beside a conversion: there the bytes of 65 GB are read in any case, and
are likely still in memory when they are asked for a second time.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Final

import numpy as np

from acestep_gguf.convert.checkpoint.safetensors_file import SafetensorsTensor
from acestep_gguf.quantize.staging import Staging

N_SAMPLED_BYTES: Final = 4096
HASHED_AT_ONCE: Final = 2**20
# A thread hashes about four times as many weights a second as it quantizes.
QUANTIZING_PER_HASHING: Final = 4

# What an interrupted conversion found out already: a line for each tensor.
HASHES_FILE: Final = "weights.sha256"

Tensors = Mapping[str, SafetensorsTensor]


def sampled_sha256(tensors: Tensors) -> str:
    """Hash over names, dtypes, shapes and first bytes of all tensors: tells most trainings apart at once."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.read_bytes(0, N_SAMPLED_BYTES).data)
    return digest.hexdigest()


def tensors_sha256(tensors: Tensors, executor: Executor) -> str:
    """Hash over names, dtypes, shapes and all bytes of all tensors, however they are spread over files.

    Raises:
        SourceLostError: a file ended early, or cannot be read.
    """
    return hashlib.sha256(b"".join(executor.map(_line, _ordered(tensors)))).hexdigest()


@contextmanager
def hashing(tensors: Tensors, staging: Staging, n_threads: int) -> Iterator[Future[str]]:
    """Find ``tensors_sha256`` beside what is done inside with ``n_threads``; the future raises the same.

    What an interrupted run has hashed is not hashed again, as long as the files are as they were.
    """
    ordered = _ordered(tensors)
    file = staging.create_notes(
        HASHES_FILE, identity=sampled_sha256(tensors), stamps=[tensor.stamp for tensor in ordered]
    )
    is_over = Event()

    def write() -> str:
        for line in pool.map(lambda tensor: _line(tensor, is_over), ordered[file.n_steps :]):
            file.write(line)
            file.end_step()
        return file.sha256

    # One of the threads writes.
    with ThreadPoolExecutor(1 + -(-n_threads // QUANTIZING_PER_HASHING)) as pool:
        try:
            yield pool.submit(write)
        finally:
            is_over.set()
            pool.shutdown(cancel_futures=True)


def _ordered(tensors: Tensors) -> list[SafetensorsTensor]:
    """Layer 2 before layer 10: about as a conversion reads them."""
    return sorted(tensors.values(), key=lambda tensor: re.sub(r"\d+", lambda n: n[0].zfill(6), tensor.name))


def _line(tensor: SafetensorsTensor, is_over: Event | None = None) -> bytes:
    digest = hashlib.sha256()
    buffer = np.empty(min(HASHED_AT_ONCE, tensor.n_bytes), np.uint8)
    for start in range(0, tensor.n_bytes, HASHED_AT_ONCE):
        if is_over and is_over.is_set():
            raise CancelledError
        piece = buffer[: tensor.n_bytes - start]
        tensor.file.read_into(piece, tensor.offset + start)
        digest.update(piece.data)
    return f"{digest.hexdigest()} {tensor.dtype} {tensor.shape} {tensor.name}\n".encode()
