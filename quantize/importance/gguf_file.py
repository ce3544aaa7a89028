"""Files of importance matrices, as llama-imatrix writes them, byte for byte where the sums are the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as QType

from acestep_gguf.errors import ImatrixError
from acestep_gguf.quantize.gguf_layout import ALIGNMENT, lay_out, string, strings, u32
from acestep_gguf.quantize.imatrix import read_sums
from acestep_gguf.quantize.importance.sums import Weighted
from acestep_gguf.quantize.recipes import TensorShape, TypeChoice
from acestep_gguf.storage.atomic_file import write_atomically


@dataclass(frozen=True, slots=True)
class Entries:
    """Sums and counts by names of weights, and the data that they come from."""

    by_name: Mapping[str, Weighted]
    datasets: tuple[str, ...]


def read_entries(path: Path) -> Entries:
    """Those of the file ``path``.

    Raises:
        ImatrixError: it is missing, damaged, in the older format, or has matrices for each expert.
    """
    read = read_sums(path)
    for name, counts in read.counts.items():
        if len(counts) != 1:
            raise ImatrixError(f"{path} is of a model with experts ({name}): leave it out.")
    by_name = {name: Weighted(sums, round(float(read.counts[name][0]))) for name, sums in read.sums.items()}
    return Entries(by_name, read.datasets)


def together(parts: Sequence[Entries]) -> Entries:
    """Sums and counts of all ``parts`` added.

    Raises:
        ImatrixError: they are of different models.
    """
    added: dict[str, Weighted] = {}
    for part in parts:
        for name, new in part.by_name.items():
            known = added.get(name, Weighted(np.zeros_like(new.sums), 0))
            if known.sums.shape != new.sums.shape:
                raise ImatrixError(f"the files are of different models ({name} differs): leave some out.")
            added[name] = Weighted(known.sums + new.sums, known.count + new.count)
    return Entries(added, tuple(dataset for part in parts for dataset in part.datasets))


def write_imatrix(path: Path, entries: Entries, *, chunk_size: int) -> None:
    """Write ``entries`` in the order of their names.

    Args:
        path: file to write or to replace.
        entries: at least one.
        chunk_size: tokens that count as a chunk, in which llama.cpp tells how much was read.

    Raises:
        ImatrixError: it cannot be written.
    """
    arrays = {}
    for name, entry in sorted(entries.by_name.items(), key=lambda item: item[0].encode()):
        arrays[f"{name}.in_sum2"] = entry.sums
        arrays[f"{name}.counts"] = np.array([entry.count], np.float32)
    metadata = {
        "general.type": string("imatrix"),
        "imatrix.datasets": strings(entries.datasets),
        "imatrix.chunk_count": u32(max(entry.count for entry in entries.by_name.values()) // chunk_size),
        "imatrix.chunk_size": u32(chunk_size),
    }
    shapes = [TensorShape(name, array.shape) for name, array in arrays.items()]
    layout = lay_out(metadata, shapes, dict.fromkeys(arrays, TypeChoice(QType.F32, QType.F32)))
    parts = [layout.header]
    for array in arrays.values():
        data = array.astype("<f4").tobytes()
        parts.append(data + bytes(-len(data) % ALIGNMENT))
    try:
        write_atomically(path, parts)
    except OSError as error:
        raise ImatrixError(
            f"{path} cannot be written ({error.strerror}): give another output.", settings=["output"]
        ) from error
