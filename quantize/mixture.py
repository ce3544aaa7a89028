"""The search for a mixture: the type of each tensor that loses least on pictures, at a given size.

Each group of tensors (a role in a layer, or in a few) is quantized alone, and what that costs is measured: KL
divergence from the reference, in its own answers. A knapsack chooses a type for each group as if losses added
up; what it chose without a measurement is measured, until there is nothing left. Then groups swap bits, and
what is measured to lose less stays.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Final

from gguf import GGMLQuantizationType as QType

from acestep_gguf.bundle.names import Ftype
from acestep_gguf.errors import UsageError
from acestep_gguf.options import check_integer
from acestep_gguf.quantize.divergence import Judge, Measured
from acestep_gguf.quantize.ggml import row_size
from acestep_gguf.quantize.gguf_layout import ALIGNMENT
from acestep_gguf.quantize.knapsack import Option, least_loss
from acestep_gguf.quantize.planning import check_ftype, worker_threads
from acestep_gguf.quantize.recipes import TensorShape, fitting_type, is_quantizable, layer_order, role_of

# What a tensor may become; where rows do not fit, their fallbacks.
CANDIDATES: Final = (
    QType.Q2_K, QType.Q3_K, QType.IQ4_XS, QType.Q4_K, QType.Q5_K, QType.Q6_K, QType.Q8_0,
)  # fmt: skip
MAX_TOKENS: Final = 2048
MAX_SWAPS: Final = 10_000
MAX_LAYERS: Final = 512

# A mixture: for each group the number of one of its types.
Numbers = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureRequest:
    """What is searched for, and how.

    Args:
        size: bytes of the file at most, or the ftype whose file it may be as large as.
        imatrix: importance matrix to quantize with.
        max_tokens: of the reference's answers.
        layers_together: layers next to each other that get the same types: fewer measurements.
        swaps: measurements to spend on groups that swap bits.
        threads: that compute, by default what suits the machine.

    Raises:
        UsageError: one of them is out of its range.
    """

    size: int | Ftype
    imatrix: Path | None = None
    max_tokens: int = 64
    layers_together: int = 1
    swaps: int = 40
    threads: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.size, str):
            check_ftype(self.size)
        check_integer("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        check_integer("layers_together", self.layers_together, 1, MAX_LAYERS)
        check_integer("swaps", self.swaps, 0, MAX_SWAPS)
        worker_threads(self.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureReport:
    """What was found; ``plain`` is the recipe of the ftype whose size was asked for, if it was one."""

    mixture: Measured
    plain: Measured | None
    max_bytes: int
    n_measured: int


def search_mixture(
    folder: Path,
    asked: Sequence[tuple[Path, str]],
    request: MixtureRequest,
    scratch: Path,
    *,
    on_measured: Callable[[str], None] = lambda _: None,
) -> MixtureReport:
    """Search the mixture for the bundle in ``folder`` that loses least on ``asked``, pictures and questions.

    Args:
        folder: of a bundle with a decoder in F32, BF16 or F16: the reference.
        asked: more are more reliable, and the time grows with them.
        request: what is searched for.
        scratch: folder for a decoder file at a time, at most as large as the reference, and for the
            reference's predictions.
        on_measured: called with a line for each decoder that was measured.

    Raises:
        UsageError: nothing fits the size; and what ``Judge`` and its ``measure`` raise.
    """
    judge = Judge(
        folder,
        asked,
        scratch,
        max_tokens=request.max_tokens,
        imatrix=request.imatrix,
        threads=request.threads,
        on_measured=on_measured,
    )
    groups = groups_of(judge.tensors, request.layers_together)
    size = request.size
    max_bytes = judge.n_bytes({}, size) if isinstance(size, str) else size
    smallest = types_of(groups, (0,) * len(groups))
    # Beside the groups: metadata and norms, which no choice changes.
    fixed = judge.n_bytes(smallest) - sum(group.n_bytes(group.types[0]) for group in groups)
    if judge.n_bytes(smallest) > max_bytes:
        raise UsageError(f"no mixture has {max_bytes:,} bytes: give {judge.n_bytes(smallest):,} at least.")
    search = _Search(judge, groups, budget=max_bytes - fixed)
    mixture = search.run(request.swaps)
    plain = judge.measure({}, size, size) if isinstance(size, str) else None
    return MixtureReport(mixture=mixture, plain=plain, max_bytes=max_bytes, n_measured=judge.n_measured)


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that get the same type, and the types that they may get, from the fewest bits to the most."""

    tensors: tuple[TensorShape, ...]
    types: tuple[QType, ...]

    @property
    def name(self) -> str:
        """For people: that of its first tensor."""
        return self.tensors[0].name.removesuffix(".weight")

    def n_bytes(self, qtype: QType) -> int:
        """Of all its tensors in a file, with the padding behind each."""
        return sum(_tensor_bytes(tensor, qtype) for tensor in self.tensors)

    def bits_per_weight(self, qtype: QType) -> float:
        """Of what it takes in a file."""
        return 8 * self.n_bytes(qtype) / sum(prod(tensor.shape) for tensor in self.tensors)

    def as_types(self, qtype: QType) -> dict[str, QType]:
        """The type of each of its tensors."""
        return {tensor.name: qtype for tensor in self.tensors}


def groups_of(tensors: Sequence[TensorShape], layers_together: int) -> tuple[Group, ...]:
    """The quantizable ones of ``tensors`` by role, and by so many layers next to each other."""

    def key(tensor: TensorShape) -> tuple[int, str]:
        layer, _ = layer_order(tensor.name)
        return (layer // layers_together, role_of(tensor.name))

    groups = []
    for _, members in groupby(sorted(filter(is_quantizable, tensors), key=key), key=key):
        together = tuple(members)
        types = {fitting_type(wanted, together[0].shape[-1]) for wanted in CANDIDATES}
        ordered = sorted(types, key=lambda qtype: (_tensor_bytes(together[0], qtype), qtype))
        groups.append(Group(together, tuple(ordered)))
    return tuple(groups)


def types_of(groups: Sequence[Group], numbers: Numbers) -> dict[str, QType]:
    """The types of all tensors in a mixture."""
    types: dict[str, QType] = {}
    for group, number in zip(groups, numbers, strict=True):
        types |= group.as_types(group.types[number])
    return types


def _tensor_bytes(tensor: TensorShape, qtype: QType) -> int:
    n_bytes = prod(tensor.shape[:-1]) * row_size(qtype, tensor.shape[-1])
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


class _Search:
    """A search for the best mixture of ``groups`` in ``budget`` bytes."""

    def __init__(self, judge: Judge, groups: Sequence[Group], *, budget: int) -> None:
        self._judge, self._groups, self._budget = judge, groups, budget
        # Of each group, by the number of its type, when that type was measured.
        self._losses: list[dict[int, float]] = [{} for _ in groups]

    def run(self, n_swaps: int) -> Measured:
        """Measure, choose by what was measured, and spend ``n_swaps`` measurements on swaps."""
        wanted = tuple(len(group.types) // 2 for group in self._groups)
        while self._measure_alone(wanted):
            wanted = least_loss(self._options(), self._budget) or (0,) * len(self._groups)
        best, numbers = self._measure(wanted, "mixture"), wanted
        tried = {numbers}
        while n_swaps and (swap := next((s for s in self._swaps(numbers) if s not in tried), None)):
            tried.add(swap)
            n_swaps -= 1
            measured = self._measure(swap, "swap")
            if measured.kl_divergence < best.kl_divergence:
                numbers, best = swap, measured
        return best

    def _measure_alone(self, numbers: Numbers) -> bool:
        """Measure each group alone in its type, the rest as in the reference; False if all were known."""
        is_new = False
        for group, losses, number in zip(self._groups, self._losses, numbers, strict=True):
            if number not in losses:
                is_new = True
                types = self._judge.reference_types | group.as_types(group.types[number])
                measured = self._judge.measure(types, f"{group.name} {group.types[number].name}")
                losses[number] = measured.kl_divergence
        return is_new

    def _options(self) -> list[list[Option]]:
        """What each group may be; a type that was not measured loses what the nearest one lets expect."""
        found = []
        for group, losses in zip(self._groups, self._losses, strict=True):
            bits = [group.bits_per_weight(qtype) for qtype in group.types]
            options = []
            for number, qtype in enumerate(group.types):
                nearest = min(losses, key=lambda known: abs(bits[known] - bits[number]))
                # A bit fewer doubles the errors, and the divergence grows with their squares.
                loss = losses[nearest] * 4 ** (bits[nearest] - bits[number])
                options.append(Option(group.n_bytes(qtype), loss))
            found.append(options)
        return found

    def _swaps(self, numbers: Numbers) -> list[Numbers]:
        """Mixtures that give a group more bits and another one fewer, if need be: the likeliest first."""
        options = self._options()
        found = {}
        for more in self._steps(numbers, 1):
            for other in (more, *self._steps(more, -1)):
                chosen = [of_group[number] for of_group, number in zip(options, other, strict=True)]
                if sum(option.n_bytes for option in chosen) <= self._budget:
                    found[other] = sum(option.loss for option in chosen)
        return sorted(found, key=lambda other: found[other])

    def _steps(self, numbers: Numbers, step: int) -> Iterator[Numbers]:
        for index, (group, number) in enumerate(zip(self._groups, numbers, strict=True)):
            if 0 <= number + step < len(group.types):
                yield (*numbers[:index], number + step, *numbers[index + 1 :])

    def _measure(self, numbers: Numbers, name: str) -> Measured:
        return self._judge.measure(types_of(self._groups, numbers), name)
