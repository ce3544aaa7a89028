"""What the image processor's config says: preprocessor_config.json, or a part of processor_config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from acestep_gguf.convert.checkpoint.config import Dim, VisionLanguageConfig
from acestep_gguf.convert.checkpoint.families import ArchitectureFamily
from acestep_gguf.convert.checkpoint.folder import CheckpointFolder
from acestep_gguf.errors import CheckpointError, UnsupportedModelError

IMAGE_PROCESSOR_FILE: Final = "preprocessor_config.json"

# Pillow's numbers.
RESAMPLE: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

Side = Annotated[int, msgspec.Meta(ge=1, le=16384)]
Channel = Annotated[float, msgspec.Meta(gt=-1e6, lt=1e6)]
Rgb = tuple[Channel, Channel, Channel]

IDEFICS3: Final[Mapping[str, Any]] = {
    "do_center_crop": False,
    "size": {"longest_edge": 4 * 364},
    "max_image_size": {"longest_edge": 364},
    "resample": RESAMPLE.index("lanczos"),
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
IDEFICS2: Final[Mapping[str, Any]] = {
    "do_center_crop": False,
    "do_image_splitting": False,
    "size": {"shortest_edge": 378, "longest_edge": 980},
    "resample": RESAMPLE.index("bilinear"),
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
# Defaults of kinds where they are not CLIPImageProcessor's.
DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "SiglipImageProcessor": {
        "do_center_crop": False,
        "size": {"height": 224, "width": 224},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
    "GotOcr2ImageProcessor": {"do_center_crop": False, "size": {"height": 384, "width": 384}},
    "Idefics2ImageProcessor": IDEFICS2,
    "Idefics3ImageProcessor": IDEFICS3,
    "SmolVLMImageProcessor": IDEFICS3,
    "PixtralImageProcessor": {"do_center_crop": False, "size": {"longest_edge": 1024}, "patch_size": 16},
    "LlavaOnevisionImageProcessor": {"do_center_crop": False, "size": {"height": 384, "width": 384}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProcessorConfig:
    """CLIPImageProcessor's config, with its defaults, and what other kinds have besides.

    ``do_pad`` is LlavaImageProcessor's, to a square. ``image_grid_pinpoints`` are heights and widths of
    tiles together, in pixels. GotOcr2ImageProcessor calls tiles patches. ``max_image_size`` is the side of
    Idefics3ImageProcessor's tiles, ``patch_size`` PixtralImageProcessor's.
    """

    kind: str
    do_resize: bool | None = True
    size: dict[str, Side | None] | Side | None = None
    resample: Annotated[int, msgspec.Meta(ge=0, lt=len(RESAMPLE))] = 3
    do_center_crop: bool | None = True
    crop_size: dict[str, Side | None] | Side | None = None
    do_rescale: bool | None = True
    rescale_factor: Annotated[float, msgspec.Meta(ge=1e-6, lt=1e6)] = 1 / 255
    do_normalize: bool | None = True
    image_mean: Rgb = (0.48145466, 0.4578275, 0.40821073)
    image_std: Rgb = (0.26862954, 0.26130258, 0.27577711)
    do_pad: bool | None = False
    image_grid_pinpoints: list[tuple[Dim, Dim]] | None = None
    min_patches: int = 1
    max_patches: int = 12
    do_image_splitting: bool = True
    max_image_size: dict[str, Side] | None = None
    patch_size: dict[str, Side] | Side | None = None

    @property
    def pads_to_square(self) -> bool:
        """Whether every picture becomes a square."""
        return self.kind == "LlavaImageProcessor" and bool(self.do_pad)

    @property
    def background(self) -> tuple[int, int, int]:
        """The color of padding, which is about zero once it is normalized."""
        red, green, blue = (int(channel * 255) for channel in self.image_mean)
        return red, green, blue


def read_image_processor(folder: CheckpointFolder, config: VisionLanguageConfig) -> ImageProcessorConfig:
    """What the image processor of a model does.

    Raises:
        CheckpointError: there is none, or its config is damaged.
        UnsupportedModelError: it is of another kind.
    """
    raw = _read(folder, config)
    kind = _kind(raw, config.family)
    try:
        return msgspec.convert({**DEFAULTS.get(kind, {}), **raw, "kind": kind}, type=ImageProcessorConfig)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"the image processor's config is damaged ({error}): get it again.") from error


def _read(folder: CheckpointFolder, config: VisionLanguageConfig) -> Mapping[str, Any]:
    own = config.family.image_processor
    if own is not None:
        side = config.vision_config.image_size
        patches = {"min_patches": config.min_dynamic_patch, "max_patches": config.max_dynamic_patch}
        return {**own, "size": {"height": side, "width": side}, **patches}
    raw = folder.processor_config.get("image_processor") or folder.read_json(IMAGE_PROCESSOR_FILE)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{folder.path} has no {IMAGE_PROCESSOR_FILE}: get the whole checkpoint.")
    return raw


def _kind(raw: Mapping[str, Any], family: ArchitectureFamily) -> str:
    kinds = family.image_processors
    name = str(raw.get("image_processor_type") or raw.get("feature_extractor_type") or kinds[0])
    # The suffix names a backend; what it computes is the same within rounding.
    kind = name.removesuffix("Fast").removesuffix("Pil")
    if kind not in kinds:
        raise UnsupportedModelError(
            f"the image processor is a {name}: supported for {family.name} are {', '.join(kinds)}."
        )
    return kind
