"""What the vision tower and the projector make of a picture."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from acestep_gguf.errors import BundleError
from acestep_gguf.vision.blocks import Block
from acestep_gguf.vision.token_selection import kept_of_blocks, kept_patches

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ImageEmbeds:
    """Image embeds, and what is known of the patches behind them.

    Args:
        embeds: float32 [n_tokens, n_embd]; patches in reading order, after tokens that belong to none
            ([CLS], in models that keep it). Of a picture that was cut into tiles, what ``blocks`` say.
        patch_attention: float32 [n_patches], attention that each patch receives in the layer that feeds the
            projector: [CLS]'s, or the mean over all patches in a tower without it. Empty in bundles that were
            made before it was written.
        blocks: grids of patches that follow one another; none where the whole picture is one crop.
    """

    embeds: FloatArray
    patch_attention: FloatArray
    blocks: tuple[Block, ...] = ()

    def kept(self, image_tokens: int | None) -> FloatArray:
        """The embeds of at most ``image_tokens`` tokens, in their order, float32 [n, n_embd].

        Tokens that belong to no patch come first and stay; of tiles, each gets its share, and the ends of
        rows are left out. None keeps all.

        Raises:
            BundleError: the attention is not known.
        """
        n_tokens, n_patches = len(self.embeds), len(self.patch_attention)
        if image_tokens is None or image_tokens >= n_tokens:
            return self.embeds
        if n_patches == 0:
            raise BundleError(
                "this bundle has no attention of patches, by which image_tokens chooses: leave it out, or if "
                "the bundle is an old one, convert the checkpoint again.",
                settings=["image_tokens"],
            )
        if self.blocks:
            rows = kept_of_blocks(self.embeds, self.patch_attention, self.blocks, image_tokens)
            return self.embeds[rows]
        n_others = n_tokens - n_patches
        n_kept = max(0, image_tokens - n_others)
        patches = kept_patches(self.embeds[n_others:], self.patch_attention, n_kept)
        others = np.arange(min(n_others, image_tokens))
        return self.embeds[np.concatenate((others, n_others + patches))]

    @cached_property
    def sha256(self) -> str:
        """SHA-256, in hexadecimal, over ``embeds`` and then ``patch_attention`` as little-endian float32."""
        hashed = hashlib.sha256()
        for part in (self.embeds, self.patch_attention):
            hashed.update(np.ascontiguousarray(part, "<f4").data)
        return hashed.hexdigest()


def cosines(one: FloatArray, other: FloatArray) -> npt.NDArray[np.float64]:
    """Cosine of each row of ``one`` to the same row of ``other``: float64 [n] of two float32 [n, n_embd]."""
    products = np.einsum("ij,ij->i", one, other, dtype=np.float64)
    lengths = [np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (one, other)]
    return np.asarray(products / np.maximum(lengths[0] * lengths[1], np.finfo(np.float64).tiny))


def centred_cosines(one: FloatArray, other: FloatArray) -> npt.NDArray[np.float64]:
    """The same as ``cosines`` of one picture, each without its mean token.

    All tokens of a picture share a large mean, which makes plain cosines look better than what sets the
    tokens apart is.
    """
    return cosines(*(rows - rows.mean(axis=0, dtype=np.float64).astype(np.float32) for rows in (one, other)))
