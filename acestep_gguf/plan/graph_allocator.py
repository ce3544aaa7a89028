"""Peak memory of a compute graph, found as ggml's graph allocator finds it (ggml/src/ggml-alloc.c).

A tensor's memory is free again after its last reader, and goes to whatever fits best; an operation that may
work in place takes over the memory of a parent that nobody else reads. What is left in gaps counts too, so
the largest set of live tensors would be up to a tenth too low: hence the walk.
"""

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from acestep_gguf.plan.placement import RAM

ALIGNMENT: Final = 32  # TENSOR_ALIGNMENT of ggml's CPU buffers; CUDA's is 128, which changes nothing here

ANYWHERE: Final = -1


@dataclass(slots=True, eq=False)
class Tensor:
    """A tensor of the graph, ``n_bytes`` on ``device``, computed from ``parents``; views are no tensors here.

    ``device`` is ANYWHERE where nothing ties a node to one. ``in_place``: its operation may overwrite a
    parent of the same size. ``kept``: an output, never freed. ``is_weight``: it has memory of its own.
    """

    n_bytes: int
    device: int
    parents: tuple["Tensor", ...] = ()
    in_place: bool = False
    kept: bool = False
    is_weight: bool = False
    readers: int = field(default=0, init=False)
    offset: int = field(default=-1, init=False)  # -1: it holds no memory of the buffer


class _Buffer:
    """One device's buffer: free blocks by offset, the last of them without an end."""

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = [(0, 2**62)]
        self.size = 0

    def take(self, tensor: Tensor) -> None:
        """Give it the smallest free block that fits, the last of several; the endless one if none does."""
        n_bytes = _aligned(tensor.n_bytes)
        fitting = [block for block in reversed(self._free[:-1]) if block[1] >= n_bytes]
        offset, size = min(fitting, key=lambda block: block[1], default=self._free[-1])
        self._free.remove((offset, size))
        if size > n_bytes:
            insort(self._free, (offset + n_bytes, size - n_bytes))
        self.size = max(self.size, offset + n_bytes)
        tensor.offset = offset

    def give_back(self, tensor: Tensor) -> None:
        """Free its block, and join it with the free neighbours."""
        offset, n_bytes = tensor.offset, _aligned(tensor.n_bytes)
        for start, size in tuple(self._free):
            if start + size == offset or start == offset + n_bytes:
                self._free.remove((start, size))
                offset, n_bytes = min(offset, start), n_bytes + size
        insort(self._free, (offset, n_bytes))
        tensor.offset = -1


def buffer_sizes(inputs: Iterable[Tensor], nodes: Sequence[Tensor], n_devices: int) -> list[int]:
    """Bytes that each device's buffer needs to compute ``nodes``, in their order, from ``inputs``.

    Inputs are there from the beginning, and one that nobody reads stays until the end. A node that reads a
    tensor of another device reads a copy.
    """
    _assign_devices(nodes)
    nodes = _with_copies(nodes)
    buffers = [_Buffer() for _ in range(n_devices)]
    for node in nodes:
        for parent in node.parents:
            parent.readers += 1
    for tensor in inputs:
        buffers[tensor.device].take(tensor)
    for node in nodes:
        heir = next((parent for parent in node.parents if _may_overwrite(node, parent)), None)
        if heir is not None:
            node.offset, heir.offset = heir.offset, -1
        else:
            buffers[node.device].take(node)
        for parent in node.parents:
            parent.readers -= 1
            if parent.readers == 0 and parent.offset >= 0 and not parent.kept:
                buffers[parent.device].give_back(parent)
    return [buffer.size for buffer in buffers]


def _assign_devices(nodes: Sequence[Tensor]) -> None:
    """Tie each node to a device, as ggml_backend_sched_split_graph does.

    Nodes join the GPU before them, then the GPU after them, then whatever is before and after them.
    """
    for only_gpus in (True, False):
        for ordered in (nodes, nodes[::-1]):
            device = ANYWHERE
            for node in ordered:
                if node.device == ANYWHERE:
                    node.device = device
                else:
                    device = ANYWHERE if only_gpus and node.device == RAM else node.device


def _may_overwrite(node: Tensor, parent: Tensor) -> bool:
    return (
        node.in_place
        and parent.readers == 1
        and parent.offset >= 0
        and not parent.kept
        and (parent.n_bytes, parent.device) == (node.n_bytes, node.device)
    )


def _with_copies(nodes: Sequence[Tensor]) -> list[Tensor]:
    """The nodes with ggml_backend_sched_split_graph's copies between devices.

    Copies are made where a split begins, a run of nodes on one device; weights from elsewhere begin another.
    """
    placed: list[Tensor] = []
    copies: dict[tuple[Tensor, int], Tensor] = {}
    split_start = n_copied = 0
    device = None
    for node in nodes:
        foreign = [parent for parent in node.parents if parent.device != node.device]
        if node.device != device or (n_copied and any(parent.is_weight for parent in foreign)):
            split_start, n_copied, device = len(placed), 0, node.device
        for parent in foreign:
            if (parent, node.device) not in copies:
                copy = Tensor(parent.n_bytes, node.device, (parent,))
                copies[parent, node.device] = copy
                placed.insert(split_start + n_copied, copy)
                n_copied += 1
        node.parents = tuple(copies.get((parent, node.device), parent) for parent in node.parents)
        placed.append(node)
    return placed


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
