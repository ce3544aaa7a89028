"""An importance matrix from calibration data to its file; carries on where it was stopped."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Final

import msgspec

from acestep_gguf.bundle.gguf_header import GGUFHeader
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.errors import ImageError, ImatrixError, UsageError
from acestep_gguf.llama.text_chunks import read_text
from acestep_gguf.options import EngineOptions, check_integer
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.settings import Workload
from acestep_gguf.quantize.importance.gguf_file import Entries, read_entries, together, write_imatrix
from acestep_gguf.quantize.importance.loading import best_of, loaded, workload_of_samples
from acestep_gguf.quantize.importance.samples import MAX_SAMPLES, Sample
from acestep_gguf.quantize.importance.state import State, state_path
from acestep_gguf.quantize.importance.sums import KINDS, Kind, Weighting, weighting_from
from acestep_gguf.storage.file_identity import file_identity

TEXT_N_CTX: Final = 512  # llama-imatrix's default
CHUNK_SIZE: Final = 512  # tokens of samples that the file calls a chunk
MAX_TOKENS: Final = 2048

# Gets how many samples, or chunks of a text, are done, and how many there are.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text alone, read in chunks that fill the context; ``n_chunks`` of them at most."""

    path: Path
    n_chunks: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImatrixOptions:
    """How calibration data become an imatrix.

    Args:
        weighting: "text" counts rows of text only, "pictures" those of pictures, "balanced" both, each with
            half of the weight. Another one needs no second pass over the data.
        max_tokens: of an answer that the decoder writes, at most.
        process_output: also for the output matrix, as llama-imatrix's option of this name.
        in_files: files of llama-imatrix, or of ``make_imatrix``, whose sums and counts are added.
        restart: forget what an earlier call with this output has read.

    Raises:
        UsageError: one is out of its range.
    """

    weighting: Weighting = "balanced"
    max_tokens: int = 64
    process_output: bool = False
    in_files: Sequence[Path] = ()
    restart: bool = False

    def __post_init__(self) -> None:
        weighting_from(self.weighting)
        check_integer("max_tokens", self.max_tokens, 1, MAX_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An imatrix that was written.

    ``decoder`` read ``n_samples`` samples, or chunks of a text, with pictures as ``tower`` encoded them;
    ``rows`` are tokens that were counted, by kind, for each of ``n_entries`` matrices.
    """

    path: Path
    decoder: str
    tower: str | None
    weighting: Weighting
    n_samples: int
    rows: Mapping[Kind, int]
    n_entries: int
    seconds: float


def make_imatrix(
    folder: Path,
    out: Path,
    data: Sequence[Sample] | TextFile,
    options: ImatrixOptions | None = None,
    *,
    dataset: str = "pictures",
    engine: EngineOptions | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Made:
    """Write the importance matrix ``out``, in llama-imatrix's format, of a bundle's decoder over ``data``.

    Samples are read by the decoder with the most bits, with pictures from the tower that lost the least,
    and with its own greedy answers where none are given; each answer is read again in one call. After each
    sample the sums so far are kept beside ``out`` (see state.py): the same call carries on from there. A
    text is read, and counted, as llama-imatrix does it.

    Args:
        folder: of the bundle.
        out: file to write or to replace.
        data: samples, or a text. No samples: ``in_files`` alone are put together.
        options: see ImatrixOptions.
        dataset: what the file says that samples come from; of a text, that is its path.
        engine: how the decoder is loaded.
        on_progress: see OnProgress.

    Raises:
        BundleError: no bundle, or a file of it is missing or damaged.
        ImatrixError: a file of ``in_files`` or what an earlier call left cannot be used, or ``out`` cannot be
            written.
        ImageError, PromptError: a picture or a prompt cannot be used.
        UnsupportedModelError: the decoder has experts.
        UsageError: an option is out of its range, the data have no such tokens, or the text cannot be read.
        MemoryShortageError: the decoder does not fit.
        DecodeError: llama.cpp or onnxruntime failed.
    """
    started = perf_counter()
    options = options or ImatrixOptions()
    _check_can_be_written(out)
    files = BundleModel(folder)
    engine = best_of(files.bundle, engine or EngineOptions())
    if isinstance(data, TextFile) and engine.n_ctx is None:
        engine = replace(engine, n_ctx=TEXT_N_CTX)
    parts = [read_entries(path) for path in options.in_files]
    chunk_size = CHUNK_SIZE
    state = State("")
    if options.restart:
        state_path(out).unlink(missing_ok=True)
    if isinstance(data, TextFile):
        chunk_size = engine.n_ctx or TEXT_N_CTX
        state = _read_chunks(files, out, data, options, engine, on_progress=on_progress)
        parts.append(Entries(state.sums.weighted(options.weighting), (str(data.path),)))
    elif data:
        state = _read_samples(files, out, data, options, engine, on_progress=on_progress)
        parts.append(Entries(state.sums.weighted(options.weighting), (f"{dataset} ({options.weighting})",)))
    if not parts:
        raise UsageError("there is nothing to read: give pictures, samples or a text.")
    entries = together(parts)
    (quant,) = files.quants(engine.quant)
    _check_are_of(entries, files.decoder(quant).header)
    write_imatrix(out, entries, chunk_size=chunk_size)
    return Made(
        path=out,
        decoder=quant,
        tower=engine.vision if state.sums.n_rows("picture") else None,
        weighting=options.weighting,
        n_samples=state.n_done,
        rows={kind: state.sums.n_rows(kind) for kind in KINDS},
        n_entries=len(entries.by_name),
        seconds=perf_counter() - started,
    )


def _read_samples(
    files: BundleModel,
    out: Path,
    samples: Sequence[Sample],
    options: ImatrixOptions,
    engine: EngineOptions,
    *,
    on_progress: OnProgress,
) -> State:
    if len(samples) > MAX_SAMPLES:
        raise UsageError(f"{len(samples):,} samples: give {MAX_SAMPLES:,} at most.")
    asked = [(list(map(_file, sample.images)), sample.prompt, sample.answer) for sample in samples]
    identity = _identity(files.bundle, engine, options, [asked, options.max_tokens])
    state = State.read(state_path(out), identity)
    on_progress(state.n_done, len(samples))
    if state.n_done < len(samples):
        workload = workload_of_samples(files, samples, options.max_tokens, engine)
        with loaded(files, engine, workload, state.sums, process_output=options.process_output) as ready:
            for sample in samples[state.n_done :]:
                ready.reader.read(sample, ready.encoder, max_tokens=options.max_tokens)
                _keep(state, out, len(samples), on_progress)
    return state


def _read_chunks(
    files: BundleModel,
    out: Path,
    text: TextFile,
    options: ImatrixOptions,
    engine: EngineOptions,
    *,
    on_progress: OnProgress,
) -> State:
    read = read_text(text.path)
    digest = hashlib.sha256(read.encode()).hexdigest()
    identity = _identity(files.bundle, engine, options, [digest, engine.n_ctx])
    state = State.read(state_path(out), identity)
    workload = Workload(images=0, n_text=engine.n_ctx)
    with loaded(files, engine, workload, state.sums, process_output=options.process_output) as ready:
        chunks = ready.reader.chunks(read)[: text.n_chunks]
        if not chunks:
            raise ImatrixError(
                f"{text.path} has fewer than the {engine.n_ctx} tokens of a chunk: give more text, or a "
                "smaller n_ctx.",
                settings=["n_ctx"],
            )
        on_progress(state.n_done, len(chunks))
        for chunk in chunks[state.n_done :]:
            ready.reader.read_chunk(chunk)
            _keep(state, out, len(chunks), on_progress)
    return state


def _keep(state: State, out: Path, n_all: int, on_progress: OnProgress) -> None:
    state.n_done += 1
    state.write(state_path(out))
    on_progress(state.n_done, n_all)


def _identity(bundle: Bundle, engine: EngineOptions, options: ImatrixOptions, data: object) -> str:
    """Stands for everything that decides the sums."""
    tower = None if engine.vision is None else bundle.vision_file(engine.vision)
    facts = [
        *(version(package) for package in ("acestep-gguf", "llama-cpp-python")),
        bundle.decoder(engine.quant).sha256,
        *(() if tower is None else (tower.sha256, tower.data.sha256)),
        (bundle.prompt, bundle.image, engine.image_tokens, engine.max_tiles, options.process_output),
        data,
    ]
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()


def _file(path: Path) -> tuple[str, tuple[str, int, int]]:
    try:
        return str(path), file_identity(path)
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror}): give another picture.") from error


def _check_can_be_written(out: Path) -> None:
    """Before anything is read, which can take long."""
    if not os.path.isdir(out.parent):
        raise UsageError(f"{out.parent} is not a folder: give another output.", settings=["output"])
    if os.path.isdir(out) or not os.access(out.parent, os.W_OK):
        raise UsageError(
            f"{out} is a folder, or its folder is write-protected: give another output.", settings=["output"]
        )


def _check_are_of(entries: Entries, header: GGUFHeader) -> None:
    """Those of ``in_files`` may be of another model."""
    lengths = {tensor.name: tensor.dims[0] for tensor in header.tensors}
    for name, entry in entries.by_name.items():
        if lengths.get(name) != len(entry.sums):
            raise ImatrixError(
                f"a file of in_file is of another model ({name} has {len(entry.sums)} values): leave it out.",
                settings=["in_file"],
            )
