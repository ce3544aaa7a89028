"""GGUF -> GGUF of another ftype: what llama-quantize does, byte for byte."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final, TypedDict, Unpack

from gguf import GGML_QUANT_VERSION, Keys

from acestep_gguf.bundle.gguf_header import MAGIC
from acestep_gguf.bundle.names import LLAMA_FTYPE, Ftype
from acestep_gguf.errors import UsageError
from acestep_gguf.quantize.conversion_events import FileDone, Finished, Planned
from acestep_gguf.quantize.gguf_layout import ALIGNMENT, GgufLayout, lay_out, u32
from acestep_gguf.quantize.gguf_source import GgufSource
from acestep_gguf.quantize.imatrix import Imatrix, Importance, check_is_weighed, read_imatrix
from acestep_gguf.quantize.one_pass import GgufOutput, buffer_bytes, write_ggufs
from acestep_gguf.quantize.planning import (
    OnEvent,
    ProgressTally,
    bytes_free,
    check_disk,
    check_ftype,
    identity,
    planned_gguf,
    worker_threads,
)
from acestep_gguf.quantize.recipes import TypeChoice, choose_types
from acestep_gguf.quantize.staging import Staging
from acestep_gguf.quantize.steering import AS_THE_RECIPE, Steering
from acestep_gguf.storage.atomic_file import partial_name

# Keys that llama-quantize drops: the output is one file.
SPLIT_KEYS: Final = ("split.no", "split.count", "split.tensors.count")

# Python, numpy and gguf.
BASE_MEMORY: Final = 150 * 2**20


class QuantizationOptions(TypedDict, total=False):
    """What may be asked for beside the ftype.

    Args:
        steering: what is to differ from the recipe.
        imatrix: file of llama-imatrix, made from the same model.
        allow_requantize: also change tensors that are quantized already, which adds error to error.
        threads: threads that read and quantize, by default one for each core.
    """

    steering: Steering
    imatrix: Path | None
    allow_requantize: bool
    threads: int | None


def quantize_gguf(
    source: Path,
    out: Path,
    ftype: Ftype,
    *,
    on_event: OnEvent = lambda _: None,
    **options: Unpack[QuantizationOptions],
) -> None:
    """Write the decoder ``source`` as ``out``, in ``ftype``; a file that is there is replaced at the end.

    Everything that can be known to be wrong is found before anything is written. After an error, ``out`` is
    as it was before; but after a full disk, a lost source or a killed process, a partial file stays under a
    hidden name, and the same call carries on with it.

    Args:
        source: GGUF file of a decoder, best F32, F16 or BF16.
        out: GGUF file to write.
        ftype: recipe of the new file.
        on_event: called with each event, see conversion_events.py; very often with Progress.
        options: see QuantizationOptions.

    Raises:
        BundleError: ``source`` is damaged, or ``out`` cannot be written.
        SourceLostError: ``source`` was cut short, or cannot be read any more.
        UnsupportedModelError: ``source`` is of an architecture that this software does not run.
        ImatrixError: ``imatrix`` is damaged or of another model.
        CheckpointError: a weight does not fit the type it gets.
        UsageError: an argument is out of its range, or ``source`` is quantized already.
    """
    started = perf_counter()
    with GgufSource(source) as opened:
        work = _plan(opened, out, ftype, **options)
        planned = work.event()
        on_event(planned)
        with Staging(out.parent, ProgressTally(planned, on_event).add) as staging:
            check_disk(planned)
            tensors = [(tensor.name, tensor) for tensor in opened.tensors]
            stamps = [opened.stamp] * len(tensors)
            file = staging.create_resumable(out.name, identity=work.identity, stamps=stamps)
            output = GgufOutput(work.layout, file)
            write_ggufs(tensors, [output], n_threads=work.n_threads, importance=work.importance or {})
            staging.publish()
    seconds = perf_counter() - started
    on_event(FileDone(file=out.name, bytes=file.n_bytes, sha256=file.sha256, seconds=seconds))
    on_event(Finished(folder=planned.folder, seconds=seconds, file=out.name))


def plan_quantization(
    source: Path,
    out: Path,
    ftype: Ftype,
    *,
    on_event: OnEvent = lambda _: None,
    **options: Unpack[QuantizationOptions],
) -> Planned:
    """What ``quantize_gguf`` would write, with the same arguments and errors; nothing is written."""
    with GgufSource(source) as opened:
        plan = _plan(opened, out, ftype, **options).event()
    on_event(plan)
    return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """The file to write, decided and checked; see ResumableFile for ``identity``."""

    out: Path
    ftype: Ftype
    layout: GgufLayout
    choices: Mapping[str, TypeChoice]
    importance: Mapping[str, Importance] | None
    identity: str
    n_threads: int

    def event(self) -> Planned:
        """The event that says what will be written."""
        folder = self.out.absolute().parent
        partial = self.out.with_name(partial_name(self.out.name))
        return Planned(
            folder=str(folder),
            files=(planned_gguf(self.out, self.ftype, self.layout, self.choices, self.importance),),
            bytes_needed=self.layout.n_bytes,
            bytes_free=bytes_free(folder, [partial] if partial.exists() else []),
            memory=BASE_MEMORY + buffer_bytes([self.layout], self.n_threads) + 3 * len(self.layout.header),
        )


def _plan(
    source: GgufSource,
    out: Path,
    ftype: Ftype,
    *,
    steering: Steering = AS_THE_RECIPE,
    imatrix: Path | None = None,
    allow_requantize: bool = False,
    threads: int | None = None,
) -> _Work:
    n_threads = worker_threads(threads)
    check_ftype(ftype)
    _check_is_new_file(out, source)
    weighing = read_imatrix(imatrix) if imatrix else None
    choices = choose_types(
        ftype, source.shapes, steering, arch=source.info.architecture, is_weighed=weighing is not None
    )
    if not allow_requantize:
        _check_is_first_quantization(source, choices)
    layout = lay_out(_metadata(source, ftype, weighing), source.shapes, choices)
    importance = weighing.importance_of(source.shapes, choices) if weighing else None
    check_is_weighed(ftype, source.shapes, choices, importance)
    return _Work(
        out=out,
        ftype=ftype,
        layout=layout,
        choices=choices,
        importance=importance,
        identity=identity(layout, importance),
        n_threads=n_threads,
    )


def _is_gguf_or_empty(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) in (b"", MAGIC)


def _check_is_new_file(out: Path, source: GgufSource) -> None:
    try:
        is_taken = out.is_dir() or (out.exists() and out.samefile(source.path))
        is_other = out.is_file() and not _is_gguf_or_empty(out)
    except OSError as error:
        raise UsageError(f"the output file cannot be made ({error.strerror}): name another file.") from error
    if is_taken:
        raise UsageError(f"{out} is a folder, or the file that is to be read: name another output file.")
    if is_other:
        raise UsageError(f"{out} is there and is not a GGUF file: name another output file, or remove it.")


def _check_is_first_quantization(source: GgufSource, choices: Mapping[str, TypeChoice]) -> None:
    for tensor in source.tensors:
        if tensor.is_quantized and tensor.qtype != choices[tensor.name].qtype:
            raise UsageError(
                f"{source.path} is quantized already ({tensor.name} is {tensor.qtype.name}): "
                "quantize an F32, F16 or BF16 file, or accept the loss with allow_requantize=True.",
                settings=["allow_requantize"],
            )


def _metadata(source: GgufSource, ftype: Ftype, imatrix: Imatrix | None) -> dict[str, bytes]:
    """The source's, but for what describes its quantization; like llama-quantize's, new values come last."""
    changed = {
        Keys.General.QUANTIZATION_VERSION: u32(GGML_QUANT_VERSION),
        Keys.General.FILE_TYPE: u32(LLAMA_FTYPE[ftype]),
        **(imatrix.metadata if imatrix else {}),
    }
    dropped = {*changed, *SPLIT_KEYS}
    kept = {key: value for key, value in source.metadata.items() if key not in dropped}
    if Keys.General.ALIGNMENT in kept:
        kept[Keys.General.ALIGNMENT] = u32(ALIGNMENT)
    return kept | changed
