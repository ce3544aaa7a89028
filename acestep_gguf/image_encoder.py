"""A picture becomes image embeds; the tower is loaded for the first one, and the last ones are remembered."""

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle import Bundle
from acestep_gguf.image import ImageSource, pixel_values
from acestep_gguf.vision import VisionTower

FloatArray = npt.NDArray[np.float32]

REMEMBERED: Final = 8


class ImageEncoder:
    """The vision tower of a bundle, and the embeds of the last pictures by the SHA-256 of their pixels."""

    def __init__(self, folder: Path, bundle: Bundle, *, n_threads: int) -> None:
        self._folder = folder
        self._bundle = bundle
        self._n_threads = n_threads
        self._tower: VisionTower | None = None
        self._embeds: OrderedDict[bytes, FloatArray] = OrderedDict()

    def load(self) -> VisionTower:
        """The tower, loaded if it is not yet.

        Raises:
            PromptError: the bundle has no tower.
            BundleError: its files are missing or damaged.
        """
        if self._tower is None:
            self._tower = VisionTower(self._folder, self._bundle, n_threads=self._n_threads)
        return self._tower

    def encode(self, source: ImageSource) -> FloatArray:
        """Embeds of a picture, float32 [n_image_tokens, n_embd].

        Raises:
            PromptError: the bundle has no tower.
            ImageError: missing, not a JPEG, PNG or WEBP, damaged or too large.
            BundleError: the tower's files are missing or damaged.
            DecodeError: onnxruntime failed.
        """
        _, image = self._bundle.tower()
        pixels = pixel_values(source, image)
        key = hashlib.sha256(pixels.tobytes()).digest()
        if key not in self._embeds:
            self._embeds[key] = self.load().encode(pixels)
        self._embeds.move_to_end(key)
        while len(self._embeds) > REMEMBERED:
            self._embeds.popitem(last=False)
        return self._embeds[key]

    def close(self) -> None:
        """Free the tower and forget all embeds."""
        self._tower = None
        self._embeds.clear()
