"""How far decoders of other types are from a bundle's best one, in its own answers to pictures."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGMLQuantizationType as QType

from acestep_gguf.bundle.names import Ftype
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.errors import UsageError
from acestep_gguf.quality.answers import BundleAnswerer, encode_with_tower
from acestep_gguf.quality.measures import Doubles, kl_divergences
from acestep_gguf.quantize.gguf_source import GgufSource
from acestep_gguf.quantize.planning import worker_threads
from acestep_gguf.quantize.recipes import is_quantizable, layer_order
from acestep_gguf.quantize.requantize import plan_quantization, quantize_gguf
from acestep_gguf.quantize.steering import AS_THE_RECIPE, Steering, TensorTypeRule

REFERENCES: Final = ("F32", "BF16", "F16")
# What a file of chosen types calls itself; when all are chosen, its recipe decides nothing.
LABEL: Final[Ftype] = "Q4_K_M"
DECODER: Final = "decoder.gguf"

Types = Mapping[str, QType]
OnMeasured = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """A decoder: the types that were chosen, by tensor, and what it is.

    ``n_bytes`` are those of its file. ``divergences`` are KL divergences in nats: of each question, float64
    [n_tokens] of its answer.
    """

    types: Types
    n_bytes: int
    divergences: tuple[Doubles, ...]

    @property
    def kl_divergence(self) -> float:
        """The mean over all tokens."""
        return float(np.concatenate(self.divergences).mean())

    @property
    def recipe(self) -> str:
        """The types as a file for llama-quantize's ``--tensor-type-file``, a tensor a line."""
        names = sorted(self.types, key=layer_order)
        return "".join(f"^{re.escape(name)}$={self.types[name].name}\n" for name in names)


class Judge:
    """Measures decoders; one of them at a time lies in ``scratch``, beside the reference's predictions.

    Args:
        folder: of a bundle with a decoder in F32, BF16 or F16: the reference.
        asked: pictures and questions.
        scratch: a folder of its own.
        max_tokens: of the reference's answers.
        imatrix: importance matrix to quantize with.
        threads: that compute, by default what suits the machine.
        on_measured: called with a line for each decoder.

    Raises:
        BundleError: no bundle, or a file of it is missing or damaged.
        PromptError: it has no vision tower.
        ImageError: a picture is missing, damaged or too large.
        UsageError: there is no reference, or nothing is asked.
        DecodeError: llama.cpp or onnxruntime failed.
    """

    def __init__(
        self,
        folder: Path,
        asked: Sequence[tuple[Path, str]],
        scratch: Path,
        *,
        max_tokens: int,
        imatrix: Path | None = None,
        threads: int | None = None,
        on_measured: OnMeasured = lambda _: None,
    ) -> None:
        if not asked:
            raise UsageError("there are no pictures to measure on: give some.")
        self._folder, self._bundle = folder, Bundle.read(folder)
        here = (ftype for ftype in REFERENCES if ftype in self._bundle.decoders.files)
        self._reference = next(here, None)
        if self._reference is None:
            raise UsageError(f"{folder} has no decoder to compare with: convert with -q F16, too.")
        self._scratch, self._max_tokens, self._imatrix = scratch, max_tokens, imatrix
        self._threads, self._on_measured = threads, on_measured
        self._source = folder / self._bundle.decoder(self._reference).file
        with GgufSource(self._source) as source:
            self.tensors = source.shapes
        self.n_measured = 0
        vision, _ = self._bundle.tower()
        paths = list(dict.fromkeys(path for path, _ in asked))
        shown = encode_with_tower(
            folder, self._bundle, vision.by_cosine[0], paths, n_threads=worker_threads(threads)
        ).shown
        # In this order, questions about one picture read it once.
        self._asked = [(shown[path], question) for path, question in sorted(asked)]
        self._answers: list[tuple[int, ...]] = []
        with self._answerer(None) as answerer:
            for number, (picture, question) in enumerate(self._asked):
                tokens = answerer.write(question, picture).tokens
                self._answers.append(tokens)
                logits = answerer.logits(question, picture, tokens)
                np.save(scratch / f"{number}.npy", logits, allow_pickle=False)

    @property
    def reference_types(self) -> dict[str, QType]:
        """The types of the reference's matrices, by tensor."""
        return {tensor.name: tensor.stored_type for tensor in self.tensors if is_quantizable(tensor)}

    def n_bytes(self, types: Types, ftype: Ftype = LABEL) -> int:
        """Size of a file of ``types``, or of the plain recipe of ``ftype`` for what is not among them.

        Raises:
            ImatrixError: the imatrix is damaged, or of another model.
            UsageError: a type needs an imatrix, and there is none.
        """
        path = self._scratch / DECODER
        return plan_quantization(
            self._source, path, ftype, steering=_steering(types), imatrix=self._imatrix
        ).bytes_needed

    def measure(self, types: Types, name: str, ftype: Ftype = LABEL) -> Measured:
        """Make such a file and measure it; ``name`` is told to ``on_measured``.

        Raises:
            BundleError: the disk is too small.
            ImatrixError: the imatrix is damaged, or of another model.
            UsageError: a type needs an imatrix, and there is none.
            DecodeError: llama.cpp failed.
        """
        path = self._scratch / DECODER
        quantize_gguf(self._source, path, ftype, steering=_steering(types), imatrix=self._imatrix)
        divergences = []
        with self._answerer(path) as answerer:
            for number, ((picture, question), tokens) in enumerate(
                zip(self._asked, self._answers, strict=True)
            ):
                best = np.load(self._scratch / f"{number}.npy", mmap_mode="r", allow_pickle=False)
                divergences.append(kl_divergences(best, answerer.logits(question, picture, tokens)))
        measured = Measured(types=types, n_bytes=path.stat().st_size, divergences=tuple(divergences))
        path.unlink()
        self.n_measured += 1
        self._on_measured(
            f"{self.n_measured}: {name}, {measured.n_bytes:,} B, KLD {measured.kl_divergence:.3e}"
        )
        return measured

    def _answerer(self, path: Path | None) -> BundleAnswerer:
        return BundleAnswerer(
            self._folder,
            self._bundle,
            str(self._reference),
            max_tokens=self._max_tokens,
            path=path,
            n_threads=self._threads,
        )


def _steering(types: Types) -> Steering:
    if not types:
        return AS_THE_RECIPE
    rules = (TensorTypeRule(re.compile(f"^{re.escape(name)}$"), qtype) for name, qtype in types.items())
    return Steering(tensor_types=tuple(rules))
