"""What quantizations cost on a text, with llama-perplexity's own method, so that figures can be compared.

The text is cut into windows; of each, the predictions of the second half count, which have the first before
them. Those of the best decoder are rounded (see rounded.py) and kept on disk.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle.decoder_info import decoder_info
from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.bundle.schema import Bundle, check_file
from acestep_gguf.cpus import usable_cpus
from acestep_gguf.errors import DecodeError, UsageError
from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.llama.text_chunks import text_chunks
from acestep_gguf.options import check_integer
from acestep_gguf.quality.measures import Bools, Doubles, Floats, token_log_probabilities
from acestep_gguf.quality.report import TextCandidate, TextReport
from acestep_gguf.quality.rounded import RoundedLogProbabilities
from acestep_gguf.quality.statistics import divergence_of, perplexity_of, share_of

N_CTX: Final = 512
MAX_N_CTX: Final = 8192
N_BATCH: Final = 512  # positions of a call: all of them may give logits
PIECE: Final = 64  # positions that are compared at a time
MIN_WINDOWS: Final = 2

OnCandidate = Callable[[str], None]


def measure_text(
    folder: Path,
    text: str,
    *,
    n_ctx: int = N_CTX,
    max_windows: int | None = None,
    n_threads: int | None = None,
    on_candidate: OnCandidate = lambda _: None,
) -> TextReport:
    """Compare the decoders of the bundle in ``folder`` on a text; the one with the most bits is the best.

    Raises:
        BundleError: no bundle, or a file of it is missing or damaged.
        and what ``compare_on_text`` raises.
    """
    bundle = Bundle.read(folder)
    decoders = bundle.decoders
    paths: dict[str, Path] = {ftype: check_file(folder, decoders.files[ftype]) for ftype in decoders.by_bits}
    return compare_on_text(
        bundle.name,
        paths,
        text,
        n_ctx=n_ctx,
        max_windows=max_windows,
        n_threads=n_threads,
        on_candidate=on_candidate,
    )


def compare_on_text(
    name: str,
    decoders: Mapping[str, Path],
    text: str,
    *,
    n_ctx: int = N_CTX,
    max_windows: int | None = None,
    n_threads: int | None = None,
    on_candidate: OnCandidate = lambda _: None,
) -> TextReport:
    """Compare GGUF files of one vocabulary on a text with the first of them.

    Args:
        name: of what they were made from.
        decoders: files by their names.
        text: as ``text_chunks.read_text`` gives it.
        n_ctx: tokens of a window.
        max_windows: how many are read at most.
        n_threads: that compute, by default one for each CPU.
        on_candidate: called with the name of each decoder before it reads.

    Raises:
        BundleError: a file is damaged.
        UnsupportedModelError: a decoder of another architecture.
        UsageError: the text is too short, an option out of its range, or the disk too small.
        DecodeError: llama.cpp failed, or the vocabularies differ.
    """
    check_integer("n_ctx", n_ctx, 4, MAX_N_CTX)
    if max_windows is not None:
        check_integer("chunks", max_windows, MIN_WINDOWS, 2**31 - 1)
    candidates = []
    with tempfile.TemporaryDirectory() as scratch:
        base = _Base(Path(scratch))
        for decoder, path in decoders.items():
            on_candidate(decoder)
            started = perf_counter()
            with _WindowReader(path, n_ctx, usable_cpus() if n_threads is None else n_threads) as reader:
                windows = reader.windows(text)[:max_windows]
                base.check_disk(len(windows) * reader.n_counted, reader.n_vocab)
                measured = [
                    base.measure(index, reader.pieces(window)) for index, window in enumerate(windows)
                ]
            candidates.append(
                TextCandidate(
                    decoder=decoder,
                    bytes=path.stat().st_size,
                    kl_divergence=divergence_of([window.divergences for window in measured]),
                    top_1=share_of([window.same_top_1 for window in measured]),
                    perplexity=perplexity_of([window.log_probabilities for window in measured]),
                    seconds=perf_counter() - started,
                )
            )
            base.is_known = True
    return TextReport(
        bundle=name,
        n_ctx=n_ctx,
        n_windows=len(measured),
        base_perplexity=perplexity_of(base.log_probabilities),
        candidates=tuple(candidates),
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """Logits, float32 [n, n_vocab], and the tokens that came in their place, int64 [n]."""

    logits: Floats
    tokens: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Measured:
    """Of the tokens of one window that count, [n] each."""

    divergences: Doubles
    same_top_1: Bools
    log_probabilities: Doubles


class _WindowReader:
    """A decoder that reads windows of ``n_ctx`` tokens; a context that frees it."""

    def __init__(self, path: Path, n_ctx: int, n_threads: int) -> None:
        decoder_info(read_gguf_header(path))
        self._n_ctx = n_ctx
        self._first = n_ctx // 2
        self.n_counted = n_ctx - 1 - self._first
        n_batch = min(n_ctx, N_BATCH)
        with ExitStack() as stack:
            self._model = stack.enter_context(Model(path))
            self.n_vocab = self._model.n_vocab
            params = ContextParams(
                n_ctx=n_ctx,
                n_batch=n_batch,
                n_outputs_max=n_batch,
                n_threads=n_threads,
                n_threads_batch=n_threads,
            )
            self._context = stack.enter_context(Context(self._model, params))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def windows(self, text: str) -> list[list[int]]:
        """The text in windows of ``n_ctx`` tokens."""
        windows = text_chunks(self._model, text, self._n_ctx)
        if len(windows) < MIN_WINDOWS:
            least = MIN_WINDOWS * self._n_ctx
            raise UsageError(
                f"the text has fewer than {least} tokens: give a longer one, or a smaller n_ctx.",
                settings=["n_ctx"],
            )
        return windows

    def pieces(self, window: Sequence[int]) -> Iterator[_Piece]:
        """What is predicted in the second half of ``window``, a few positions at a time."""
        self._context.keep(0)
        for start in range(0, self._n_ctx, self._context.n_batch):
            given = window[start : start + self._context.n_batch]
            end = start + len(given)
            first = max(self._first, start)
            n_outputs = max(0, end - first)
            self._context.decode_tokens(given, start, n_outputs=n_outputs)
            last = min(end, self._n_ctx - 1)  # what comes after the window is not known
            for position in range(first, last, PIECE):
                positions = range(position, min(position + PIECE, last))
                logits = np.stack([self._context.logits(at - end) for at in positions])
                yield _Piece(logits, np.array([window[at + 1] for at in positions]))


class _Base:
    """The predictions of the first decoder, on disk in ``scratch``: there can be gigabytes of them."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.is_known = False
        self.log_probabilities: list[Doubles] = []  # of the tokens that came, rounded

    def check_disk(self, n_positions: int, n_vocab: int) -> None:
        """Whether there is room for so many predictions, if they are still to be written."""
        n_bytes = n_positions * n_vocab * np.dtype(np.uint16).itemsize
        if not self.is_known and n_bytes > shutil.disk_usage(self._scratch).free:
            raise UsageError(
                f"the predictions need {n_bytes / 1e9:.1f} GB in {self._scratch.parent}: read fewer chunks, "
                "or set TMPDIR.",
                settings=["chunks"],
            )

    def measure(self, index: int, pieces: Iterator[_Piece]) -> _Measured:
        """Compare what is predicted in window ``index`` with the first decoder's, which are kept."""
        divergences: list[Doubles] = []
        same: list[Bools] = []
        log_probabilities: list[Doubles] = []
        for number, piece in enumerate(pieces):
            path = self._scratch / f"{index}-{number}.npz"
            if self.is_known:
                base = _load(path)
                if base.steps.shape != piece.logits.shape:
                    raise DecodeError("the decoders have different vocabularies: compare those of one model.")
            else:
                base = RoundedLogProbabilities.of(piece.logits)
                np.savez(path, steps=base.steps, scale=base.scale, least=base.least)
                self.log_probabilities.append(base.of_tokens(piece.tokens))
            log_probabilities.append(token_log_probabilities(piece.logits, piece.tokens))
            divergences.append(base.kl_divergences(piece.logits))
            same.append(base.same_top_1(piece.logits))
        return _Measured(np.concatenate(divergences), np.concatenate(same), np.concatenate(log_probabilities))


def _load(path: Path) -> RoundedLogProbabilities:
    with np.load(path, allow_pickle=False) as kept:
        return RoundedLogProbabilities(kept["steps"], kept["scale"], kept["least"])
