"""What planning needs to know of a bundle's files, read from their headers when it is asked for."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Self

from acestep_gguf.bundle.decoder_info import DecoderInfo, decoder_info
from acestep_gguf.bundle.gguf_header import TENSOR_TYPES, GGUFHeader, TensorType, read_gguf_header
from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.bundle.names import DecoderFtype, VisionPrecision, vision_precision_from
from acestep_gguf.bundle.prefill_info import PrefillLayout, check_prefill_file
from acestep_gguf.bundle.schema import Bundle, check_file
from acestep_gguf.options import EngineOptions
from acestep_gguf.plan.decoder_memory import DecoderShape, DecoderWeights, decoder_shape, decoder_weights
from acestep_gguf.plan.tower_memory import TowerMemory, tower_memory
from acestep_gguf.vision.image import picture_size
from acestep_gguf.vision.image_file import ImageSource
from acestep_gguf.vision.int8_check import known_precision
from acestep_gguf.vision.tiling import n_positions, tiling_of


@dataclass(frozen=True, slots=True, eq=False)
class DecoderModel:
    """A decoder file's header, as far as it decides about memory."""

    header: GGUFHeader
    info: DecoderInfo
    shape: DecoderShape
    weights: DecoderWeights

    @classmethod
    def read(cls, path: Path) -> Self:
        """Of the file ``path``.

        Raises:
            BundleError: missing or damaged.
            UnsupportedModelError: of another architecture.
        """
        header = read_gguf_header(path)
        return cls(header, decoder_info(header), decoder_shape(header), decoder_weights(header))

    @property
    def n_multiplied(self) -> int:
        """Weights that every token is multiplied with: all but the embeddings, and the output matrix."""
        return sum(tensor.n_elements for layer in self.weights.layers for tensor in layer.tensors.values())

    @property
    def main_type(self) -> int:
        """Type that most weights of the layers have, as in enum ggml_type."""
        counts: Counter[TensorType] = Counter()
        for layer in self.weights.layers:
            for tensor in layer.tensors.values():
                counts[tensor.type] += tensor.n_elements
        ((most, _),) = counts.most_common(1)
        return next(number for number, kind in TENSOR_TYPES.items() if kind == most)


class BundleModel:
    """A bundle's decoders and tower.

    Raises:
        BundleError: no bundle, or one of its files is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = Bundle.read(folder)
        self._decoders: dict[DecoderFtype, DecoderModel] = {}
        self._towers: dict[VisionPrecision, TowerMemory] = {}

    def decoder(self, quant: DecoderFtype) -> DecoderModel:
        """The decoder ``quant``, read on the first call.

        Raises:
            BundleError: missing or damaged.
            UnsupportedModelError: of another architecture.
        """
        if quant not in self._decoders:
            path = check_file(self.folder, self.bundle.decoders.files[quant])
            self._decoders[quant] = DecoderModel.read(path)
        return self._decoders[quant]

    def quants(self, wanted: str | None) -> list[DecoderFtype]:
        """The decoder ``wanted``; or else all, the default first, then smaller ones.

        Raises:
            BundleError: there is no such decoder.
        """
        files = self.bundle.decoders.files
        if wanted is not None:
            record = self.bundle.decoder(wanted)
            return [quant for quant, file in files.items() if file is record]
        default = files[self.bundle.decoders.default]
        smaller = sorted((f.bytes, quant) for quant, f in files.items() if f.bytes < default.bytes)
        return [self.bundle.decoders.default, *(quant for _, quant in reversed(smaller))]

    def vision(self, wanted: str | None = None) -> VisionPrecision | None:
        """The precision of the tower that is used: the one ``wanted``, or the default; None without a tower.

        It is float32 where the other one is known to give wrong numbers on this machine.

        Raises:
            BundleError: there is no such tower.
        """
        precision = None if wanted is None else vision_precision_from(wanted)
        if self.bundle.vision is None and precision is None:
            return None
        return known_precision(self.folder, self.bundle, precision)

    def tower(self, precision: VisionPrecision) -> TowerMemory:
        """Memory of the tower in one precision, read on the first call.

        Raises:
            BundleError: it is not there, or damaged.
        """
        image = self.bundle.image
        if image is None:
            return TowerMemory(0, 0)
        if precision not in self._towers:
            record = self.bundle.vision_file(precision)
            self._towers[precision] = tower_memory(check_file(self.folder, record), record, image)
        return self._towers[precision]

    @cached_property
    def int8_layers(self) -> PrefillLayout | None:
        """The decoder's layers in int8, None if the bundle has none.

        Raises:
            BundleError: they are damaged.
        """
        record = self.bundle.prefill
        return None if record is None else check_prefill_file(self.folder, record)

    def most_of_picture(self, n_images: int, max_tiles: int | None) -> tuple[int, int]:
        """The most crops and tokens that each of ``n_images`` pictures has, whatever their sizes."""
        image = self.bundle.image
        return (0, 0) if image is None else _most(image, max_tiles, is_alone=n_images == 1)

    def embeds_bytes(self, n_images: int, max_tiles: int | None) -> int:
        """Memory for the embeds of ``n_images`` pictures at most, float32."""
        _, most = self.most_of_picture(n_images, max_tiles)
        return 4 * n_images * most * self.bundle.image.n_embd if self.bundle.image else 0

    def crop_bytes(self, n_images: int, max_tiles: int | None) -> int:
        """Memory for the crops of ``n_images`` pictures at most, [3, H, W] each.

        They are uint8, and float32 while the tower reads one.
        """
        image = self.bundle.image
        n_crops, _ = self.most_of_picture(n_images, max_tiles)
        return 3 * (n_images * n_crops + 4) * image.size.height * image.size.width if image else 0

    def picture_tokens(self, picture: ImageSource, n_images: int, options: EngineOptions) -> int:
        """Positions that a picture takes, known from its size; it is one of ``n_images`` in its prompt.

        Raises:
            PromptError: the bundle has no tower.
            ImageError: it is missing, of another format or too large.
        """
        _, image = self.bundle.tower()
        tiling = tiling_of(image, max_tiles=options.max_tiles, n_pictures=n_images)
        return n_positions(tiling, picture_size(picture, image), image_tokens=options.image_tokens)

    def image_tokens(self, n_images: int, options: EngineOptions | None = None) -> int:
        """Positions that pictures of any size take in the context at most."""
        options = options or EngineOptions()
        _, most = self.most_of_picture(n_images, options.max_tiles)
        if options.image_tokens is None or self.bundle.image is None:
            return n_images * most
        n_marks = tiling_of(self.bundle.image, max_tiles=options.max_tiles).most_marks()
        return n_images * min(options.image_tokens + n_marks, most)


@lru_cache(maxsize=64)  # a plan asks thousands of times
def _most(image: ImageSpec, max_tiles: int | None, *, is_alone: bool) -> tuple[int, int]:
    return tiling_of(image, max_tiles=max_tiles, n_pictures=1 if is_alone else 2).most()
