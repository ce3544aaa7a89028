"""Every decoder and every tower of a bundle answers the same questions; one decoder is loaded at a time."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle.names import DecoderFtype, VisionPrecision
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.cpus import usable_cpus
from acestep_gguf.errors import UsageError
from acestep_gguf.llama.params import MOST_THREADS
from acestep_gguf.options import check_integer
from acestep_gguf.quality.answers import (
    Answerer,
    BundleAnswerer,
    EncodedPicture,
    EncodedPictures,
    GreedyAnswer,
    encode_with_tower,
)
from acestep_gguf.quality.measures import (
    Bools,
    Doubles,
    kl_divergences,
    n_alike,
    same_top_1,
    token_log_probabilities,
)
from acestep_gguf.quality.report import (
    Candidate,
    ComparedAnswer,
    EmbedsError,
    PictureQuestion,
    QualityReport,
)
from acestep_gguf.quality.statistics import divergence_of, perplexity_of, share_of
from acestep_gguf.vision.embeds import centred_cosines, cosines

Floats = npt.NDArray[np.float32]

MAX_QUESTIONS: Final = 1000
MAX_TOKENS: Final = 2048

OnCandidate = Callable[[str], None]


class Reference(Answerer, Protocol):
    """The checkpoint itself, elsewhere: what all candidates are compared with, if it is given."""

    @property
    def name(self) -> str:
        """Stands where candidates have the name of a decoder."""

    @property
    def tower(self) -> str:
        """Stands where candidates have the name of a tower."""

    @property
    def bytes(self) -> int:
        """Size of its weights in memory or on disk."""

    def image_embeds(self, path: Path) -> Floats:
        """Embeds of the picture at ``path``, float32 [n_image_tokens, n_embd]."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A decoder and a tower by their names."""

    ftype: DecoderFtype
    tower: VisionPrecision


def measure_quality(
    folder: Path,
    asked: Sequence[tuple[Path, str]],
    *,
    max_tokens: int,
    n_threads: int | None = None,
    reference: Callable[[], AbstractContextManager[Reference]] | None = None,
    on_candidate: OnCandidate = lambda _: None,
) -> QualityReport:
    """Ask the decoders and towers of the bundle in ``folder``, and compare each with the best one.

    That is ``reference``, or the decoder and the tower that lost the least. Each other decoder is asked with
    the best tower, each other tower with the best decoder.

    Args:
        folder: of the bundle.
        asked: pictures and questions.
        max_tokens: of an answer at most.
        n_threads: of towers and decoders; by default what suits the machine.
        reference: opens the checkpoint itself.
        on_candidate: called with the name of each tower and decoder, before it is asked.

    Raises:
        BundleError: no bundle, or a file of it is missing or damaged.
        PromptError: it has no vision tower.
        ImageError: a picture is missing, damaged or too large.
        UsageError: nothing, or too much, is asked; or the disk is too small for what is compared.
        DecodeError: llama.cpp or onnxruntime failed.
    """
    check_integer("max_tokens", max_tokens, 1, MAX_TOKENS)
    if not 1 <= len(asked) <= MAX_QUESTIONS:
        raise UsageError(f"{len(asked)} questions: ask 1 to {MAX_QUESTIONS}.")
    threads = usable_cpus() if n_threads is None else n_threads
    check_integer("n_threads", threads, 1, MOST_THREADS)
    bundle = Bundle.read(folder)
    pairs = _pairs(bundle)
    paths = list(dict.fromkeys(path for path, _ in asked))
    towers: dict[VisionPrecision, EncodedPictures] = {}
    for precision in dict.fromkeys(pair.tower for pair in pairs):
        on_candidate(f"{precision} tower")
        towers[precision] = encode_with_tower(folder, bundle, precision, paths, n_threads=threads)

    candidates: list[Candidate] = []
    with tempfile.TemporaryDirectory() as scratch:
        comparison = _Comparison(asked, Path(scratch), max_tokens)
        if reference is not None:
            on_candidate("checkpoint")
            with reference() as opened:
                started = perf_counter()
                shown = {path: EncodedPicture(path, opened.image_embeds(path)) for path in paths}
                tower = EncodedPictures(shown, (perf_counter() - started) / len(paths))
                candidates.append(comparison.ask(opened, tower, opened.name, opened.tower, opened.bytes))
        for ftype in dict.fromkeys(pair.ftype for pair in pairs):
            on_candidate(ftype)
            opened_decoder = BundleAnswerer(folder, bundle, ftype, max_tokens=max_tokens, n_threads=n_threads)
            with opened_decoder as answerer:
                for pair in pairs:
                    if pair.ftype == ftype:
                        file = bundle.vision_file(pair.tower)
                        n_bytes = bundle.decoder(ftype).bytes + file.bytes + file.data.bytes
                        tower = towers[pair.tower]
                        candidates.append(comparison.ask(answerer, tower, ftype, pair.tower, n_bytes))
    return QualityReport(
        bundle=bundle.name,
        asked=tuple(PictureQuestion(picture=str(path), question=question) for path, question in asked),
        candidates=tuple(candidates),
    )


def _pairs(bundle: Bundle) -> list[_Pair]:
    """The decoders and towers to ask, the best pair first."""
    vision, _ = bundle.tower()
    ftypes, towers = bundle.decoders.by_bits, vision.by_cosine
    pairs = [
        *(_Pair(ftypes[0], tower) for tower in towers),
        *(_Pair(ftype, towers[0]) for ftype in ftypes),
        _Pair(bundle.decoders.default, vision.default),
    ]
    return list(dict.fromkeys(pairs))


class _Comparison:
    """Asks one candidate after another; the first is the best one.

    Its logits are kept in ``scratch``, on disk: there can be gigabytes of them.
    """

    def __init__(self, asked: Sequence[tuple[Path, str]], scratch: Path, max_tokens: int) -> None:
        self._asked = asked
        self._scratch = scratch
        self._max_tokens = max_tokens
        self._best: list[GreedyAnswer] = []
        self._best_shown: Mapping[Path, EncodedPicture] = {}

    def ask(
        self, answerer: Answerer, tower: EncodedPictures, decoder: str, tower_name: str, n_bytes: int
    ) -> Candidate:
        """Ask ``answerer``, with what ``tower`` made of the pictures."""
        self._best_shown = self._best_shown or tower.shown
        answers = []
        seconds = 0.0
        divergences: list[Doubles] = []
        same: list[Bools] = []
        log_probabilities: list[Doubles] = []
        for index, (path, question) in enumerate(self._asked):
            written = answerer.write(question, tower.shown[path])
            seconds += written.seconds
            if index == len(self._best):
                self._best.append(written)
            best = self._best[index]
            logits = answerer.logits(question, tower.shown[path], best.tokens)
            best_logits = self._best_logits(index, logits)
            divergences.append(kl_divergences(best_logits, logits))
            same.append(same_top_1(best_logits, logits))
            log_probabilities.append(token_log_probabilities(logits, best.tokens))
            answers.append(
                ComparedAnswer(
                    text=written.text,
                    n_tokens=len(written.tokens),
                    n_alike=n_alike(written.tokens, best.tokens),
                    is_same=written.tokens == best.tokens,
                )
            )
        return Candidate(
            decoder=decoder,
            tower=tower_name,
            bytes=n_bytes,
            kl_divergence=divergence_of(divergences),
            top_1=share_of(same),
            perplexity=perplexity_of(log_probabilities),
            embeds=self._embeds_error(tower),
            image_s=tower.seconds,
            answer_s=seconds / len(answers),
            answers=tuple(answers),
        )

    def _embeds_error(self, tower: EncodedPictures) -> EmbedsError:
        pairs = [(self._best_shown[path].embeds, shown.embeds) for path, shown in tower.shown.items()]
        plain = np.concatenate([cosines(*pair) for pair in pairs])
        centred = np.concatenate([centred_cosines(*pair) for pair in pairs])
        return EmbedsError(
            cosine=float(plain.mean()),
            min_cosine=float(plain.min()),
            centred_cosine=float(centred.mean()),
            min_centred_cosine=float(centred.min()),
        )

    def _best_logits(self, index: int, logits: Floats) -> Floats:
        """The logits of the best one: those kept for this question, or else ``logits``, which are kept."""
        path = self._scratch / f"{index}.npy"
        if not path.exists():
            self._check_disk(logits)
            np.save(path, logits, allow_pickle=False)
        kept: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
        return kept

    def _check_disk(self, logits: Floats) -> None:
        n_left = len(self._asked) * self._max_tokens * logits[0].nbytes
        if n_left > shutil.disk_usage(self._scratch).free:
            raise UsageError(
                f"the answers' logits may need {n_left / 1e9:.1f} GB in {self._scratch.parent}: ask less, "
                "lower max_tokens, or set TMPDIR.",
                settings=["max_tokens"],
            )
