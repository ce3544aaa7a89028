"""What a decoder reads: a prompt is a sequence of segments, token ids and pictures in turn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

# What one call of llama.cpp can read: token ids, or rows of embeds.
Content = Sequence[int] | FloatArray


@dataclass(frozen=True, slots=True)
class ImageInput:
    """A picture in a prompt: ``n_tokens`` positions. The same ``key`` means the same ones.

    ``parts`` is empty where each position is a row of embeds. Else it is what follows one another: numbers of
    rows, and token ids between them.
    """

    key: bytes
    n_tokens: int
    parts: tuple[int | tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return self.n_tokens

    def contents(self, embeds: FloatArray) -> Iterator[Content]:
        """What stands at its positions, of which ``embeds``, float32 [n, n_embd], are the rows."""
        start = 0
        for part in self.parts or (self.n_tokens,):
            if isinstance(part, tuple):
                yield part
            else:
                yield embeds[start : start + part]
                start += part


def image_input(key: bytes, n_rows: Sequence[int], marks: Sequence[tuple[int, ...]]) -> ImageInput:
    """A picture of blocks of so many rows each, with ``marks`` before, between and behind them, if any."""
    if not marks:
        return ImageInput(key, sum(n_rows))
    parts = [part for pair in zip(marks, n_rows, strict=False) for part in pair] + [marks[-1]]
    n_tokens = sum(n_rows) + sum(map(len, marks))
    return ImageInput(key, n_tokens, tuple(part for part in parts if part))


Segment = tuple[int, ...] | ImageInput

# What stands at one position: a token id, or a picture's key and the number of the row.
Position = int | tuple[bytes, int]


def segments_after(prompt: Sequence[Segment], n_past: int) -> Iterator[Segment]:
    """The segments of ``prompt`` that begin at position ``n_past`` or later."""
    start = 0
    for segment in prompt:
        if start >= n_past:
            yield segment
        start += len(segment)


def positions_of(prompt: Sequence[Segment]) -> list[Position]:
    """What stands at each position of a prompt."""
    positions: list[Position] = []
    for segment in prompt:
        if isinstance(segment, ImageInput):
            positions += [(segment.key, row) for row in range(segment.n_tokens)]
        else:
            positions += segment
    return positions


def row_of(position: Position) -> int:
    """How many positions of the same picture come before it; 0 for a token."""
    return position[1] if isinstance(position, tuple) else 0


def call_ends(prompt: Sequence[Segment], n_batch: int) -> Iterator[int]:
    """Where calls of llama.cpp end when ``prompt`` is read from its start.

    A call never spans the end of a picture, nor tokens and rows of one, and cuts what is left only each
    ``n_batch`` positions.
    """
    start = 0
    for segment in prompt:
        parts = segment.parts if isinstance(segment, ImageInput) else ()
        for n_positions in (part if isinstance(part, int) else len(part) for part in parts or (segment,)):
            end = start + n_positions
            yield from range(start + n_batch, end, n_batch)
            yield end
            start = end
