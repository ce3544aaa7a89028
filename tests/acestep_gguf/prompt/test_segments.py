from itertools import accumulate, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.prompt.segments import (
    ImageInput,
    Segment,
    call_ends,
    image_input,
    positions_of,
    row_of,
    segments_after,
)

PICTURE = ImageInput(b"a", 3)
PROMPT: list[Segment] = [(7, 8), PICTURE, PICTURE, (9,)]

SEGMENTS: st.SearchStrategy[Segment] = st.one_of(
    st.lists(st.integers(0, 9), min_size=1, max_size=9).map(tuple),
    st.builds(ImageInput, st.binary(max_size=1), st.integers(1, 9)),
)


def test_what_stands_where() -> None:
    rows = [(b"a", 0), (b"a", 1), (b"a", 2)]
    assert positions_of(PROMPT) == [7, 8, *rows, *rows, 9]
    assert [row_of(position) for position in positions_of(PROMPT)] == [0, 0, 0, 1, 2, 0, 1, 2, 0]
    assert list(segments_after(PROMPT, 0)) == PROMPT
    assert list(segments_after(PROMPT, 5)) == [PICTURE, (9,)]
    assert list(segments_after(PROMPT, 9)) == []


def test_where_calls_end() -> None:
    assert list(call_ends(PROMPT, 512)) == [2, 5, 8, 9]
    assert list(call_ends(PROMPT, 2)) == [2, 4, 5, 7, 8, 9]


def test_a_picture_may_have_tokens_between_its_rows() -> None:
    picture = image_input(b"a", [2, 0, 1], [(7, 8), (9,), (5,), (6,)])
    assert picture == ImageInput(b"a", 8, ((7, 8), 2, (9,), (5,), 1, (6,)))
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    contents = [np.asarray(content).tolist() for content in picture.contents(rows)]
    assert contents == [[7, 8], [[0, 1], [2, 3]], [9], [5], [[4, 5]], [6]]
    # It is one whole all the same: nothing that is kept ends inside.
    assert [row_of(position) for position in positions_of([picture])] == [*range(8)]
    assert list(call_ends([(1,), picture], 512)) == [1, 3, 5, 6, 7, 8, 9]


def test_a_picture_without_tokens_is_its_rows() -> None:
    assert image_input(b"a", [2, 1], ()) == PICTURE
    (content,) = PICTURE.contents(np.zeros((3, 2), np.float32))
    assert len(content) == 3


@given(st.lists(SEGMENTS, min_size=1, max_size=5), st.integers(1, 10))
def test_calls_span_no_end_of_a_segment_and_are_as_long_as_can_be(
    prompt: list[Segment], n_batch: int
) -> None:
    ends = list(call_ends(prompt, n_batch))
    segment_ends = set(accumulate(map(len, prompt)))
    assert segment_ends <= set(ends)
    assert ends[-1] == len(positions_of(prompt))
    for start, end in pairwise([0, *ends]):
        assert 0 < end - start <= n_batch
        assert end - start == n_batch or end in segment_ends
