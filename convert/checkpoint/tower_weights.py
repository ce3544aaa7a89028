"""A tower's tensors as its graph takes them: a projection each, with layer scale in them, no empty axes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.weight import DerivedWeight, Weight

# What a layer's scale multiplies: the output of the linear layer before it.
SCALED: Final = {"ls1": "attn_out", "ls2": "ffn_down"}
STACKED: Final = ".attn_qkv."
# Tensors that may have axes of one element before these.
N_AXES: Final = {"v.class_embd": 1, "v.position_embd.weight": 2}


def as_built(tensors: Mapping[str, Weight]) -> dict[str, Weight]:
    """The tensors of a checkpoint's tower and projector by their names, ready for the graph."""
    scales = {
        f"{block}.{SCALED[scale]}": tensor
        for name, tensor in tensors.items()
        for block, _, scale in [name.rpartition(".")]
        if scale in SCALED
    }
    return dict(_built(tensors, scales))


def _built(tensors: Mapping[str, Weight], scales: Mapping[str, Weight]) -> Iterator[tuple[str, Weight]]:
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind in SCALED:
            continue
        if STACKED in name:
            n_rows = tensor.shape[0] // 3
            for part, projection in enumerate("qkv"):
                rows = RowRange(tensor, part * n_rows, n_rows)
                yield name.replace(STACKED, f".attn_{projection}."), rows
        elif layer in scales:
            yield name, Scaled(tensor, scales[layer])
        elif name in N_AXES:
            yield name, LastAxes(tensor, N_AXES[name])
        else:
            yield name, tensor


@dataclass(frozen=True, slots=True)
class RowRange(DerivedWeight):
    """Rows ``first`` to ``first + n_rows`` of a matrix, or elements of a vector."""

    first: int
    n_rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_rows, *self.tensor.shape[1:])

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        if len(self.shape) == 1:
            return self.tensor.read_rows(start, stop)[:, self.first : self.first + self.n_rows]
        return self.tensor.read_rows(self.first + start, self.first + stop)


@dataclass(frozen=True, slots=True)
class Row(DerivedWeight):
    """One row of a matrix, as a vector."""

    number: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape[1:]

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.tensor.read_rows(self.number, self.number + 1)[start:stop]


@dataclass(frozen=True, slots=True)
class Scaled(DerivedWeight):
    """A linear layer's weight or bias, each output times its element of ``scale``."""

    scale: Weight

    @property
    def stamp(self) -> str:
        return f"{self.tensor.stamp} {self.scale.stamp}"

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        rows, scale = self.tensor.read_rows(start, stop), self.scale.read()
        return rows * (scale if len(self.shape) == 1 else scale[start:stop, np.newaxis])


@dataclass(frozen=True, slots=True)
class LastAxes(DerivedWeight):
    """The same without the axes before the last ``n_axes``, which have one element each."""

    n_axes: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape[-self.n_axes :]
