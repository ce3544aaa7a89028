"""What planning needs to know of a bundle's files, read from their headers when it is asked for."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from acestep_gguf.bundle.decoder_info import DecoderInfo, decoder_info
from acestep_gguf.bundle.gguf_header import TENSOR_TYPES, GGUFHeader, TensorType, read_gguf_header
from acestep_gguf.bundle.names import DecoderFtype, VisionPrecision, vision_precision_from
from acestep_gguf.bundle.schema import Bundle, check_file
from acestep_gguf.plan.decoder_memory import DecoderShape, DecoderWeights, decoder_shape, decoder_weights
from acestep_gguf.plan.tower_memory import TowerMemory, tower_memory
from acestep_gguf.vision.int8_check import known_precision


@dataclass(frozen=True, slots=True, eq=False)
class DecoderModel:
    """A decoder file's header, as far as it decides about memory."""

    header: GGUFHeader
    info: DecoderInfo
    shape: DecoderShape
    weights: DecoderWeights

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
            header = read_gguf_header(check_file(self.folder, self.bundle.decoders.files[quant]))
            self._decoders[quant] = DecoderModel(
                header, decoder_info(header), decoder_shape(header), decoder_weights(header)
            )
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

    def embeds_bytes(self, n_images: int) -> int:
        """Memory for the embeds of ``n_images`` pictures, float32."""
        image = self.bundle.image
        return 4 * n_images * image.n_image_tokens * image.n_embd if image else 0

    def pixel_bytes(self, n_images: int) -> int:
        """Memory for the pixel_values of ``n_images`` pictures, float32 [3, H, W] each."""
        image = self.bundle.image
        return 4 * n_images * 3 * image.size.height * image.size.width if image else 0

    def image_tokens(self, n_images: int, most: int | None = None) -> int:
        """Positions that pictures take in the context, ``most`` at most each."""
        if self.bundle.image is None:
            return 0
        n_tokens = self.bundle.image.n_image_tokens
        return n_images * (n_tokens if most is None else min(most, n_tokens))
