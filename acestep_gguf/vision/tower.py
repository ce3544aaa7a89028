"""The vision tower and projector in onnxruntime: pixel_values in, image embeds and attention out."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from acestep_gguf.bundle.image_spec import SIZES_OF_THEIR_OWN, AnySize
from acestep_gguf.bundle.names import VisionPrecision
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.bundle.vision_info import (
    IMAGE_EMBEDS,
    IMAGE_NEWLINE,
    PATCH_ATTENTION,
    PIXEL_VALUES,
    check_vision_file,
)
from acestep_gguf.errors import BundleError, DecodeError
from acestep_gguf.options import TowerProvider
from acestep_gguf.ort_session import ORT_ERRORS, first_line, session, session_options
from acestep_gguf.vision.blocks import packed
from acestep_gguf.vision.embeds import ImageEmbeds
from acestep_gguf.vision.image import normalized
from acestep_gguf.vision.tiling import Tiling

FloatArray = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

DAMAGED: Final = (
    "the vision tower gave image embeds of another shape, or not finite ones: its weights are damaged, copy "
    "the bundle again."
)


class VisionTower:
    """The tower of a bundle in one precision, by default the bundle's default, loaded.

    Raises:
        PromptError: the bundle has no tower.
        BundleError: the tower's files are missing, damaged, or not what bundle.json says.
        UsageError: onnxruntime does not have the provider, or cannot start it.
    """

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        precision: VisionPrecision | None = None,
        *,
        n_threads: int,
        provider: TowerProvider = "cpu",
    ) -> None:
        _, self._image = bundle.tower()
        image = self._image
        path = check_vision_file(folder, bundle.vision_file(precision), image)
        options = session_options(n_threads)
        try:
            self._session = session(path, options, provider)
        except ORT_ERRORS as error:
            raise BundleError(
                f"onnxruntime cannot load {path} ({first_line(error)}): convert again."
            ) from error
        outputs = [output.name for output in self._session.get_outputs()]
        self._outputs = [name for name in outputs if name != IMAGE_NEWLINE]
        self._has_newline = IMAGE_NEWLINE in outputs
        self._run = ort.RunOptions()

    def encode(self, pixel_values: FloatArray) -> ImageEmbeds:
        """Image embeds of one crop, float32 [1, 3, H, W], and the attention that its patches get.

        One crop a call: what a picture becomes must not depend on what else is encoded, and int8 has one
        step for all of its input. The tower of an older bundle gives no attention; it is empty then.

        Raises:
            DecodeError: wrong shape, or the tower gave numbers that are not finite.
        """
        if pixel_values.dtype != np.float32 or not self._takes(pixel_values.shape):
            shape = f"{pixel_values.dtype} {pixel_values.shape}"
            side = "or less " if isinstance(self._image.tiles, SIZES_OF_THEIR_OWN) else ""
            raise DecodeError(
                f"pixel_values are {shape}, this tower takes float32 {side}{self._largest_input}."
            )
        try:
            self._run = ort.RunOptions()
            found = self._session.run(self._outputs, {PIXEL_VALUES: pixel_values}, self._run)
        except ORT_ERRORS as error:
            raise DecodeError(f"onnxruntime failed on a picture ({first_line(error)}).") from error
        outputs = dict(zip(self._outputs, found, strict=True))
        embeds = outputs[IMAGE_EMBEDS]
        attention = outputs.get(PATCH_ATTENTION, np.empty((1, 0), np.float32))
        is_finite = all(
            array.dtype == np.float32 and np.isfinite(array).all() for array in (embeds, attention)
        )
        if embeds.shape != (1, self._n_tokens(pixel_values.shape), self._image.n_embd) or not is_finite:
            raise DecodeError(DAMAGED)
        return ImageEmbeds(embeds[0], attention[0])

    @property
    def _largest_input(self) -> tuple[int, ...]:
        return 1, 3, self._image.size.height, self._image.size.width

    @property
    def _smallest_input(self) -> tuple[int, ...]:
        tiles = self._image.tiles
        if isinstance(tiles, SIZES_OF_THEIR_OWN):
            return 1, 3, tiles.step, tiles.step
        return self._largest_input

    def _takes(self, shape: tuple[int, ...]) -> bool:
        tiles = self._image.tiles
        if not isinstance(tiles, SIZES_OF_THEIR_OWN) or len(shape) != len(self._largest_input):
            return shape == self._largest_input
        sides = zip(shape[2:], self._largest_input[2:], strict=True)
        step = tiles.step if isinstance(tiles, AnySize) else 1  # of others, part of a patch is left out
        return shape[:2] == (1, 3) and all(
            tiles.step <= side <= most and side % step == 0 for side, most in sides
        )

    def _n_tokens(self, shape: tuple[int, ...]) -> int:
        if not isinstance(tiles := self._image.tiles, AnySize):
            return self._image.n_image_tokens
        return (shape[2] // tiles.step) * (shape[3] // tiles.step)

    def encode_picture(
        self, crops: Sequence[UInt8Array], size: tuple[int, int], tiling: Tiling
    ) -> ImageEmbeds:
        """Image embeds of a picture of ``size`` from its crops, uint8 [H, W, 3] each.

        Raises:
            DecodeError: wrong shape, or the tower gave numbers that are not finite.
        """
        found = [self.encode(normalized(crop, self._image)) for crop in crops]
        if self._image.tiles is None:
            return found[0]
        blocks = tiling.blocks(size)

        def rows(features: list[FloatArray], newline: FloatArray | None) -> FloatArray:
            return packed(tiling.grids(np.stack(features), size), blocks, newline)

        embeds = rows([crop.embeds for crop in found], self.image_newline)
        attention = found[0].patch_attention
        if attention.size:
            attention = rows([crop.patch_attention[:, np.newaxis] for crop in found], None)[:, 0]
        return ImageEmbeds(embeds, attention, blocks)

    @cached_property
    def image_newline(self) -> FloatArray | None:
        """The embedding that ends rows of tiles, float32 [n_embd]; None in models that have none.

        Raises:
            DecodeError: the tower's weights are damaged.
        """
        if not self._has_newline:
            return None
        alone = ort.RunOptions()
        alone.only_execute_path_to_fetches = True
        nothing = {PIXEL_VALUES: np.zeros(self._smallest_input, np.float32)}
        try:
            newline: FloatArray = self._session.run([IMAGE_NEWLINE], nothing, alone)[0]
        except ORT_ERRORS as error:
            raise DecodeError(f"onnxruntime failed on the tower ({first_line(error)}).") from error
        if (
            newline.dtype != np.float32
            or newline.shape != (self._image.n_embd,)
            or not np.isfinite(newline).all()
        ):
            raise DecodeError(DAMAGED)
        return newline

    def stop(self) -> None:
        """Let the picture that is being encoded fail with a DecodeError; any thread may."""
        self._run.terminate = True
