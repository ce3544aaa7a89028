"""Llama 3.1's RoPE scaling ("llama3") as llama.cpp's Llama takes it: a tensor of divisors."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acestep_gguf.convert.checkpoint.config import TextConfig

ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class RopeFactors:
    """A weight that no file holds: what each of the rotation frequencies of ``text`` is divided by."""

    text: TextConfig

    @property
    def name(self) -> str:
        return "rope_parameters of config.json"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.text.head_size // 2,)

    @property
    def stamp(self) -> str:
        """Nothing: the file's header, made of config.json, tells one from another."""
        return ""

    def check(self) -> None:
        """Nothing can be wrong: config.json is checked."""

    def read(self) -> NDArray[np.float32]:
        """float32 [head_size / 2], by transformers' ``_compute_llama3_parameters``.

        Long waves are stretched by the whole factor, short ones not at all, those between by some of it.
        """
        rope, head_size = self.text.rope_parameters, self.text.head_size
        low, high = rope.low_freq_factor or 1.0, rope.high_freq_factor or 4.0
        exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
        frequencies = 1 / np.float32(rope.rope_theta) ** exponents
        turns = self.text.original_context_length / (2 * math.pi / frequencies)  # in the original context
        share = np.clip((turns - low) / (high - low), 0, 1)
        return (1 / ((1 - share) / (rope.factor or 1.0) + share)).astype(np.float32)

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """The vector as one row."""
        return self.read()[np.newaxis][start:stop]
