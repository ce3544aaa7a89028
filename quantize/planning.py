"""What ``convert`` and ``quantize`` report before and while they write, and the disk space that it takes."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from acestep_gguf.bundle.names import FTYPES
from acestep_gguf.cpus import usable_cpus
from acestep_gguf.errors import BundleError, UsageError
from acestep_gguf.quantize.conversion_events import Event, Planned, PlannedFile, Progress
from acestep_gguf.quantize.gguf_layout import GgufLayout
from acestep_gguf.quantize.imatrix import Importance
from acestep_gguf.quantize.recipes import FLOAT_TYPES, TypeChoice
from acestep_gguf.storage.atomic_file import partial_name
from acestep_gguf.storage.unfinished import journal_path

OnEvent = Callable[[Event], None]

MAX_THREADS: Final = 1024


def check_ftype(ftype: str) -> None:
    """Raises UsageError for a file type that cannot be made."""
    if ftype not in FTYPES:
        raise UsageError(f"{ftype!r} is not a file type that can be made: choose from {', '.join(FTYPES)}.")


def worker_threads(threads: int | None) -> int:
    """Threads that read and quantize, by default one for each core. Raises UsageError if they are absurd."""
    n_threads = usable_cpus() if threads is None else threads
    if not 1 <= n_threads <= MAX_THREADS:
        raise UsageError(f"{n_threads} threads were asked for: give 1 to {MAX_THREADS}.")
    return n_threads


def identity(layout: GgufLayout, importance: Mapping[str, Importance] | None, *source: str) -> str:
    """Stands for everything that decides a file's bytes but its weights; see ResumableFile."""
    parts = [*(version(package) for package in ("acestep-gguf", "llama-cpp-python")), *source]
    digest = hashlib.sha256(msgspec.json.encode(parts) + layout.header)
    for name, values in sorted((importance or {}).items()):
        digest.update(name.encode() + b"\0" + values.tobytes())
    return digest.hexdigest()


def planned_gguf(
    path: Path,
    label: str,
    layout: GgufLayout,
    choices: Mapping[str, TypeChoice],
    importance: Mapping[str, object] | None,
) -> PlannedFile:
    """The file ``path`` for a Planned event; ``importance`` holds the tensors that an imatrix weighs."""
    fallbacks = (choice for choice in choices.values() if choice.is_fallback)
    quantized = [name for name, choice in choices.items() if choice.qtype not in FLOAT_TYPES]
    partial = path.with_name(partial_name(path.name))
    return PlannedFile(
        file=path.name,
        label=label,
        bytes=layout.n_bytes,
        bytes_kept=partial.stat().st_size if partial.exists() and journal_path(path).exists() else 0,
        bits_per_weight=layout.bits_per_weight,
        types=_counted(tensor.qtype.name for tensor in layout.tensors),
        fallbacks=_counted(f"{choice.wanted.name} -> {choice.qtype.name}" for choice in fallbacks),
        unweighed=() if importance is None else tuple(name for name in quantized if name not in importance),
    )


def bytes_free(folder: Path, leftovers: Iterable[Path]) -> int:
    """What the disk of ``folder`` has free, or will have once ``leftovers`` are used or removed."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free + sum(path.stat().st_blocks * 512 for path in leftovers)


def check_disk(plan: Planned) -> None:
    """Refuse to start what cannot be finished.

    Raises:
        BundleError: the files need more space than there is.
    """
    if plan.bytes_needed > plan.bytes_free:
        raise BundleError(
            f"{plan.folder} needs {plan.bytes_needed:,} bytes for {len(plan.files)} files, but its "
            f"disk has only {plan.bytes_free:,} free or in their unfinished parts: "
            f"free {plan.bytes_needed - plan.bytes_free:,} bytes more, or choose another folder."
        )


class ProgressTally:
    """Adds up what is written to the files of a plan, and reports it as Progress events."""

    def __init__(self, plan: Planned, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._bytes_total = plan.bytes_needed
        self._tensors_total = sum(sum(file.types.values()) for file in plan.files)
        self._bytes_written = self._tensors_written = 0

    def add(self, n_bytes: int, n_tensors: int) -> None:
        """Count bytes, or tensors, that a file has got."""
        if not n_bytes and not n_tensors:
            return
        self._bytes_written += n_bytes
        self._tensors_written += n_tensors
        self._on_event(
            Progress(
                bytes_written=self._bytes_written,
                bytes_total=self._bytes_total,
                tensors_written=self._tensors_written,
                tensors_total=self._tensors_total,
            )
        )


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())
