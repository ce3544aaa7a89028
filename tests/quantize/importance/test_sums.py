import numpy as np
import pytest
from numpy.typing import NDArray

from acestep_gguf.errors import ImatrixError, UsageError
from acestep_gguf.quantize.importance.sums import SquareSums, Weighting, weighting_from

RNG = np.random.default_rng(0)
PROMPT, PICTURE, ANSWER = (RNG.standard_normal((n, 5)).astype(np.float32) for n in (7, 90, 3))
TEXT = np.concatenate([PROMPT, ANSWER])


def mean_square(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(np.mean(rows.astype(np.float64) ** 2, axis=0))


@pytest.fixture
def sums() -> SquareSums:
    sums = SquareSums()
    for name in ("blk.1.b", "blk.0.a"):
        sums.add("prompt", name, PROMPT)
        sums.add("answer", name, ANSWER)
        for part in np.split(PICTURE, 3):
            sums.add("picture", name, part)
    return sums


@pytest.mark.parametrize(
    ("weighting", "count", "mean"),
    [
        ("text", 10, mean_square(TEXT)),
        ("pictures", 90, mean_square(PICTURE)),
        ("balanced", 100, (mean_square(TEXT) + mean_square(PICTURE)) / 2),
    ],
)
def test_weightings(sums: SquareSums, weighting: Weighting, count: int, mean: NDArray[np.float64]) -> None:
    entries = sums.weighted(weighting)
    assert entries.keys() == {"blk.0.a", "blk.1.b"}
    for entry in entries.values():
        assert entry.count == count
        assert entry.sums.dtype == np.float32
        np.testing.assert_allclose(entry.sums / count, mean, rtol=1e-6)


def test_text_alone_is_balanced_too_but_has_no_pictures() -> None:
    sums = SquareSums()
    sums.add("prompt", "a", PROMPT)
    np.testing.assert_array_equal(sums.weighted("balanced")["a"].sums, sums.weighted("text")["a"].sums)
    with pytest.raises(UsageError, match="has no such tokens"):
        sums.weighted("pictures")


def test_float32_sums_are_those_of_a_loop_over_rows() -> None:
    rows = (RNG.standard_normal((300, 4)) * 1e3).astype(np.float32)
    sums = SquareSums()
    for part in np.split(rows, [100, 116]):
        sums.add("prompt", "a", part, in_float32=True)
    expected = np.zeros(4, np.float32)
    for row in rows:
        expected += row * row
    entry = sums.weighted("text")["a"]
    np.testing.assert_array_equal(entry.sums, expected)
    assert entry.count == 300


def test_rows_of_another_length_are_refused(sums: SquareSums) -> None:
    with pytest.raises(ImatrixError, match="other rows than before"):
        sums.add("prompt", "blk.0.a", np.zeros((2, 6), np.float32))


def test_names_of_weightings() -> None:
    assert weighting_from("balanced") == "balanced"
    with pytest.raises(UsageError, match="choose from text, pictures, balanced"):
        weighting_from("all")
