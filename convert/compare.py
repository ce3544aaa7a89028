"""Decoders compared with the checkpoint that they were made from: what did quantization cost each tensor?

Blocks are dequantized by gguf-py's numpy code, not by the library that made them.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from math import inf, prod, sqrt
from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGMLQuantizationType as QType
from gguf import quants
from numpy.typing import NDArray

from acestep_gguf.bundle.names import DecoderFtype
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.bundle.verify import DecoderComparison, QtypeError
from acestep_gguf.convert.checkpoint.identity import tensors_sha256
from acestep_gguf.convert.model import open_model
from acestep_gguf.cpus import usable_cpus
from acestep_gguf.quantize.gguf_source import GgufSource, GgufTensor
from acestep_gguf.quantize.one_pass import TensorSource

# Relative RMS error of random normal weights: what a type costs. tests/convert/test_compare.py measures it.
NORMAL_ERROR: Final = {
    QType.F32: 0.0,
    QType.F16: 0.0002,
    QType.BF16: 0.0017,
    QType.Q8_0: 0.0054,
    QType.Q6_K: 0.018,
    QType.Q5_K: 0.036,
    QType.Q5_1: 0.038,
    QType.Q5_0: 0.042,
    QType.Q4_K: 0.072,
    QType.IQ4_NL: 0.076,
    QType.IQ4_XS: 0.077,
    QType.Q4_1: 0.078,
    QType.Q4_0: 0.086,
    QType.Q3_K: 0.150,
    QType.IQ3_S: 0.167,
    QType.IQ3_XXS: 0.182,
    QType.IQ2_S: 0.249,
    QType.Q2_K: 0.300,
    QType.IQ2_XS: 0.301,
    QType.IQ2_XXS: 0.345,
    QType.IQ1_M: 0.454,
    QType.IQ1_S: 0.487,
}
# Heavy tails cost up to 1.5 times as much (Student's t with 3 degrees of freedom), an imatrix 1.1 times, at
# the fewest bits perhaps 1.6 times; rows that are not the checkpoint's, with an error of 1.3 and more, are
# beyond the margin of every type.
MARGIN: Final = 2.0

CHUNK_WEIGHTS: Final = 2**20


def compare_with_checkpoint(folder: Path, checkpoint: Path) -> tuple[DecoderComparison, ...]:
    """Compare every decoder of the bundle in ``folder`` with the folder ``checkpoint``, in one pass over it.

    What differs is reported, not raised.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or contradicts itself.
        UnsupportedModelError: it is of a kind that this software does not run.
        BundleError: the bundle is missing or damaged.
    """
    bundle = Bundle.read(folder)
    with (
        open_model(checkpoint, None) as model,
        ExitStack() as stack,
        ThreadPoolExecutor(usable_cpus()) as executor,
    ):
        is_same = model.source == replace(bundle.source, tensors_sha256=None)
        if is_same and bundle.source.tensors_sha256:
            is_same = tensors_sha256(model.weights.stored, executor) == bundle.source.tensors_sha256
        comparisons = [
            _Comparison(ftype, stack.enter_context(GgufSource(folder / record.file)))
            for ftype, record in bundle.decoders.files.items()
        ]
        for comparison in comparisons:
            if not is_same:
                comparison.problems.append(
                    f"{comparison.decoder.path} was not made from {checkpoint}: give its own checkpoint."
                )
            comparison.check_names_and_shapes(model.tensors.decoder)
        for name, tensor in model.tensors.decoder.items():
            having = [comparison for comparison in comparisons if name in comparison.tensors]
            errors = relative_errors(tensor, [comparison.tensors[name] for comparison in having], executor)
            for comparison, error in zip(having, errors, strict=True):
                comparison.add(name, error)
    return tuple(comparison.result() for comparison in comparisons)


def relative_errors(tensor: TensorSource, stored: Sequence[GgufTensor], executor: Executor) -> list[float]:
    """RMS error over RMS of the weights of ``tensor``, for each way in which it is stored."""
    n_rows = prod(tensor.shape[:-1])
    at_once = max(1, CHUNK_WEIGHTS // tensor.shape[-1])

    def sums(start: int) -> NDArray[np.float64]:
        """Sum of squares of rows from ``start``: of the weights, then of the errors of each of ``stored``."""
        stop = min(start + at_once, n_rows)
        rows = tensor.read_rows(start, stop)
        errors = (_dequantized(other, start, stop) - rows for other in stored)
        return np.array([np.square(x, dtype=np.float64).sum() for x in (rows, *errors)])

    weights, *errors = sum(executor.map(sums, range(0, n_rows, at_once)), start=np.zeros(1 + len(stored)))
    # Weights may all be zero, and then must stay it.
    return [sqrt(error / weights) if weights else inf if error else 0.0 for error in errors]


def _dequantized(tensor: GgufTensor, start: int, stop: int) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = quants.dequantize(tensor.read_blocks(start, stop), tensor.qtype)
    return rows


class _Comparison:
    """A ``decoder`` while it is compared with the checkpoint; ``tensors`` are those that can be compared."""

    def __init__(self, ftype: DecoderFtype, decoder: GgufSource) -> None:
        self.ftype = ftype
        self.decoder = decoder
        self.tensors = {tensor.name: tensor for tensor in decoder.tensors}
        self.problems: list[str] = []
        self._errors: dict[QType, dict[str, float]] = {}

    def check_names_and_shapes(self, expected: Mapping[str, TensorSource]) -> None:
        """Note what is missing, too much, or of a wrong shape or type, and take it out of ``tensors``."""
        for name in expected.keys() - self.tensors.keys():
            self._note(name, "is missing")
        for name, tensor in list(self.tensors.items()):
            if name not in expected:
                problem = "is not in the checkpoint"
            elif tensor.shape != expected[name].shape:
                problem = (
                    f"has the shape {list(tensor.shape)}, in the checkpoint {list(expected[name].shape)}"
                )
            elif tensor.qtype not in NORMAL_ERROR:
                problem = f"is {tensor.qtype.name}, a type that conversion does not write"
            else:
                continue
            self._note(name, problem)
            del self.tensors[name]

    def add(self, name: str, error: float) -> None:
        """Note the error of a tensor."""
        qtype = self.tensors[name].qtype
        self._errors.setdefault(qtype, {})[name] = error
        if error > MARGIN * NORMAL_ERROR[qtype]:
            self._note(
                name, f"is off by {error:.2g} of its size, {qtype.name} costs {NORMAL_ERROR[qtype]:.2g}"
            )

    def result(self) -> DecoderComparison:
        """The findings, the types of the most bits first."""
        return DecoderComparison(
            ftype=self.ftype,
            file=self.decoder.path.name,
            errors=tuple(
                QtypeError(
                    qtype=qtype.name,
                    n_tensors=len(self._errors[qtype]),
                    mean=sum(self._errors[qtype].values()) / len(self._errors[qtype]),
                    worst=max(self._errors[qtype].values()),
                    worst_tensor=max(self._errors[qtype], key=lambda name: self._errors[qtype][name]),
                    limit=MARGIN * NORMAL_ERROR[qtype],
                )
                for qtype in NORMAL_ERROR
                if qtype in self._errors
            ),
            problems=tuple(self.problems),
        )

    def _note(self, name: str, problem: str) -> None:
        self.problems.append(f"{self.decoder.path} does not fit the checkpoint: tensor {name} {problem}.")
