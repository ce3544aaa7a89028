"""Cosines and sines that llama.cpp rotates queries and keys with: RoPE, linear or YaRN (arXiv 2309.00071)."""

import math
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle.gguf_header import GGUFHeader
from acestep_gguf.errors import BundleError
from acestep_gguf.prefill.gguf_rows import GgufRows

FloatArray = npt.NDArray[np.float32]

# llama.cpp's, where a GGUF does not say.
BASE: Final = 10000.0
BETA_FAST: Final = 32.0
BETA_SLOW: Final = 1.0
FACTORS: Final = "rope_freqs.weight"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rotation:
    """How much pair i of a head is rotated from position to position.

    Args:
        n_embd_head: size of a head.
        base: of the frequencies.
        scale: of positions, 1 / factor.
        magnitude: cosines and sines are multiplied by it.
        kept: float32 [n_embd_head / 2], the share of each pair's angle that is not scaled.
        factors: float32 [n_embd_head / 2], what frequencies are divided by.
    """

    n_embd_head: int
    base: float
    scale: float
    magnitude: float
    kept: FloatArray
    factors: FloatArray

    @classmethod
    def of(cls, header: GGUFHeader, n_embd_head: int) -> Self:
        """As the metadata of a checked GGUF say.

        Raises:
            BundleError: they describe no rotation.
        """
        architecture = header.metadata["general.architecture"]

        def number(key: str, default: float) -> float:
            value = header.metadata.get(f"{architecture}.{key}", default)
            return float(value) if isinstance(value, int | float) else default

        n_pairs = n_embd_head // 2
        scaling = header.metadata.get(f"{architecture}.rope.scaling.type", "linear")
        factor = number("rope.scaling.factor", 1.0) if scaling != "none" else 1.0
        base = number("rope.freq_base", BASE)
        magnitude = number("rope.scaling.attn_factor", 1.0)
        kept = np.zeros(n_pairs, np.float32)
        if scaling == "yarn":
            magnitude *= 1.0 + 0.1 * math.log(factor)
            n_ctx = number("rope.scaling.original_context_length", 0) or number("context_length", 0)
            if n_ctx <= 0 or base <= 1:
                raise BundleError(f"{header.path}: YaRN with a context of {n_ctx:g} and a base of {base:g}.")
            kept = _kept(n_embd_head, n_ctx, base)
        found = GgufRows.find(header, FACTORS)
        factors = np.ones(n_pairs, np.float32) if found is None else found.read([0])[0]
        if factors.shape != (n_pairs,):
            raise BundleError(f"{header.path}: {FACTORS} has {len(factors)} numbers for {n_pairs} pairs.")
        return cls(
            n_embd_head=n_embd_head,
            base=base,
            scale=1.0 / factor,
            magnitude=magnitude,
            kept=kept,
            factors=factors,
        )

    def tables(self, n: int) -> tuple[FloatArray, FloatArray]:
        """Cosines and sines of positions 0 to ``n`` - 1, float32 [n, n_embd_head / 2] each."""
        # llama.cpp multiplies in float32 from pair to pair; so do we, for the same angles to the bit.
        steps: FloatArray = np.full((n, len(self.kept)), self.base ** (-2.0 / self.n_embd_head), np.float32)
        steps[:, 0] = np.arange(n)
        unscaled = np.multiply.accumulate(steps, axis=1, dtype=np.float32) / self.factors
        angles = unscaled * np.float32(self.scale) * (1 - self.kept) + unscaled * self.kept
        magnitude = np.float32(self.magnitude)
        return np.cos(angles) * magnitude, np.sin(angles) * magnitude


def _kept(n_embd_head: int, n_ctx: float, base: float) -> FloatArray:
    """YaRN's ramp: all of what turns fast is kept, nothing of what turns slowly."""

    def pair(n_turns: float) -> float:
        return n_embd_head * math.log(n_ctx / (n_turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(0.0, math.floor(pair(BETA_FAST)))
    high = min(n_embd_head - 1.0, math.ceil(pair(BETA_SLOW)))
    ramp = (np.arange(n_embd_head // 2) - low) / max(0.001, high - low)
    return np.asarray(1 - np.clip(ramp, 0, 1), np.float32)
