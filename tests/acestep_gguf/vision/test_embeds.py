import numpy as np
import pytest

from acestep_gguf.errors import BundleError
from acestep_gguf.vision.embeds import ImageEmbeds, centred_cosines, cosines


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
    with pytest.raises(BundleError, match="too old for image_tokens"):
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
