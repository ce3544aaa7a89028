"""What a conversion tells while it runs: the command line shows it as a bar and a table, or as JSON lines.

Sizes are in bytes, times in seconds. docs/convert.md describes the same fields as ``--log-json`` prints them.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """A file that will be written.

    ``label`` is a decoder's ftype, "vision", "mmproj" or "prefill". ``bytes_kept`` are there from a
    conversion that was interrupted. ``types`` counts tensors by type; ``fallbacks`` counts those whose rows
    do not fit the type that the recipe wanted, as "Q4_K -> Q5_0". ``unweighed`` names tensors that are
    quantized although the imatrix, if one was given, does not know them.
    """

    file: str
    label: str
    bytes: int
    bytes_kept: int
    bits_per_weight: float
    types: dict[str, int]
    fallbacks: dict[str, int]
    unweighed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What will be written; everything is checked. ``memory`` is an estimate of the anonymous peak.

    ``bytes_free`` counts what unfinished files take, too: it will be used or freed. ``source_quantization``
    tells how the checkpoint is quantized already, so that its decoders are quantized twice.
    """

    event: ClassVar[str] = "plan"

    folder: str
    files: tuple[PlannedFile, ...]
    bytes_needed: int
    bytes_free: int
    memory: int
    source_quantization: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Of all files together; one tensor in two files counts as two."""

    event: ClassVar[str] = "progress"

    bytes_written: int
    bytes_total: int
    tensors_written: int
    tensors_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDone:
    """A file is complete. Decoders are written side by side, so ``seconds`` is the same for all of them."""

    event: ClassVar[str] = "file"

    file: str
    bytes: int
    sha256: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The bundle ``folder`` is ready, or the ``file`` in it that ``quantize`` wrote."""

    event: ClassVar[str] = "finished"

    folder: str
    seconds: float
    file: str | None = None


Event = Planned | Progress | FileDone | Finished
