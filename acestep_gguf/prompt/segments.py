"""What a decoder reads: a prompt is a sequence of segments, token ids and pictures in turn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageInput:
    """A picture in a prompt: ``n_tokens`` rows of embeds. The same ``key`` means the same rows."""

    key: bytes
    n_tokens: int

    def __len__(self) -> int:
        return self.n_tokens


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

    A call never spans the end of a picture, and cuts a segment only each ``n_batch`` positions.
    """
    start = 0
    for segment in prompt:
        end = start + len(segment)
        yield from range(start + n_batch, end, n_batch)
        yield end
        start = end
