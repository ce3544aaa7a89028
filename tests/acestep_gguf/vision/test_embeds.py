import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from acestep_gguf.errors import BundleError
from acestep_gguf.vision.embeds import FloatArray, ImageEmbeds, centred_cosines, cosines


def numbered(n_tokens: int, attention: list[float]) -> ImageEmbeds:
    embeds = np.eye(n_tokens, dtype=np.float32)
    embeds[:, 0] = np.arange(n_tokens)
    return ImageEmbeds(embeds, np.array(attention, np.float32))


def test_the_tokens_of_the_patches_that_count() -> None:
    embeds = numbered(4, [1, 4, 2, 3])
    assert [embeds.kept(n)[:, 0].tolist() for n in (1, 2, 3, 4, 99, None)] == [
        [1],
        [1, 3],
        [1, 2, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]


def test_a_token_that_belongs_to_no_patch_comes_first() -> None:
    embeds = numbered(5, [1, 4, 2, 3])
    assert [embeds.kept(n)[:, 0].tolist() for n in (1, 2, 3, 5)] == [
        [0],
        [0, 2],
        [0, 2, 4],
        [0, 1, 2, 3, 4],
    ]


def test_without_attention_none_can_be_left_out() -> None:
    embeds = numbered(4, [])
    assert len(embeds.kept(None)) == len(embeds.kept(4)) == 4
    with pytest.raises(BundleError, match="no attention of patches"):
        embeds.kept(3)


def test_the_hash_tells_embeds_and_attention_apart() -> None:
    same, also, other, tired = (
        numbered(4, [1, 4, 2, 3]),
        numbered(4, [1, 4, 2, 3]),
        numbered(3, [1, 4, 2]),
        numbered(4, [1, 4, 2, 2]),
    )
    assert same.sha256 == also.sha256
    assert len({same.sha256, other.sha256, tired.sha256}) == 3


def test_cosines_of_rows() -> None:
    one = np.array([[1, 0], [1, 1], [1, 1], [0, 0]], np.float32)
    other = np.array([[-2, 0], [5, 0], [-1, 1], [1, 0]], np.float32)
    np.testing.assert_allclose(cosines(one, other), [-1, 0.5**0.5, 0, 0], atol=1e-12)


def test_centred_cosines_do_not_see_what_all_tokens_of_a_picture_share() -> None:
    random = np.random.default_rng(0)
    mean = np.full(64, 30, np.float32)
    one, other = random.normal(size=(2, 50, 64)).astype(np.float32)
    assert cosines(one + mean, other + mean).min() > 0.99
    assert abs(centred_cosines(one + mean, other + mean).mean()) < 0.1
    np.testing.assert_allclose(centred_cosines(one + mean, one - mean), np.ones(50), atol=1e-6)


@given(
    arrays(np.float32, (2, 7, 5), elements=st.floats(-8, 8, width=16)),
    arrays(np.float32, (2, 1, 5), elements=st.integers(-16, 16)),
    st.sampled_from([0.5, 1.0, 4.0]),
)
def test_centred_cosines_are_cosines_of_what_is_left_of_the_mean(
    pictures: FloatArray, means: FloatArray, scale: float
) -> None:
    """Whatever is added to all tokens of one of the pictures, and however long its tokens are."""
    left = pictures.astype(np.float64) - pictures.mean(axis=1, keepdims=True, dtype=np.float64)
    lengths = np.linalg.norm(left, axis=2)
    found = centred_cosines(*(scale * pictures + means).astype(np.float32))
    clear = (lengths > 0.01).all(axis=0)  # of shorter ones, little is left of float32
    expected = (left[0] * left[1]).sum(axis=1)[clear] / lengths.prod(axis=0)[clear]
    np.testing.assert_allclose(found[clear], expected, atol=1e-3)
    assert (abs(found) <= 1 + 1e-6).all()
