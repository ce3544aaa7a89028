"""preprocessor_config.json, or what is nested in processor_config.json instead, as an ImageSpec."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal

import msgspec

from acestep_gguf.bundle.image_spec import ImageSpec, Size
from acestep_gguf.convert.checkpoint.config import VisionLanguageConfig
from acestep_gguf.convert.checkpoint.folder import PROCESSOR_FILE, CheckpointFolder
from acestep_gguf.errors import CheckpointError, UnsupportedModelError, UsageError

IMAGE_PROCESSOR_FILE: Final = "preprocessor_config.json"

# Pillow's numbers.
RESAMPLE: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

MAX_PATCHES_PER_SIDE: Final = 256

# Defaults of kinds where they are not CLIPImageProcessor's.
LLAVA: Final = "LlavaImageProcessor"
DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "SiglipImageProcessor": {
        "do_center_crop": False,
        "size": {"height": 224, "width": 224},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
}

Side = Annotated[int, msgspec.Meta(ge=1, le=16384)]
Channel = Annotated[float, msgspec.Meta(gt=-1e6, lt=1e6)]
Rgb = tuple[Channel, Channel, Channel]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProcessorConfig:
    """CLIPImageProcessor's config, with its defaults; ``do_pad`` is LlavaImageProcessor's, to a square."""

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


def read_image_spec(
    folder: CheckpointFolder, config: VisionLanguageConfig, image_size: int | None
) -> ImageSpec:
    """How pictures are prepared, for the checkpoint's picture size or for ``image_size`` instead.

    Raises:
        CheckpointError: no image processor, or it does not fit the tower.
        UnsupportedModelError: an image processor of another kind.
        UsageError: ``image_size`` does not fit the tower.
    """
    raw = folder.processor_config.get("image_processor") or folder.read_json(IMAGE_PROCESSOR_FILE)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{folder.path} has no {IMAGE_PROCESSOR_FILE}: get the whole checkpoint.")
    kind = _kind(raw, config)
    _check_same_tower(folder.processor_config, config)
    try:
        processor = msgspec.convert({**DEFAULTS.get(kind, {}), **raw}, type=ImageProcessorConfig)
        spec = _image_spec(processor, config, can_pad=kind == LLAVA)
    except ValueError as error:
        raise CheckpointError(f"the image processor's config is damaged ({error}): get it again.") from error
    return spec if image_size in (None, spec.size.height) else _resized(spec, config, image_size)


def _kind(raw: Mapping[str, Any], config: VisionLanguageConfig) -> str:
    kinds = config.family.image_processors
    name = str(raw.get("image_processor_type") or raw.get("feature_extractor_type") or kinds[0])
    # The suffix names a backend; what it computes is the same within rounding.
    kind = name.removesuffix("Fast").removesuffix("Pil")
    if kind not in kinds:
        raise UnsupportedModelError(
            f"the image processor is a {name}: supported for {config.family.name} are {', '.join(kinds)}."
        )
    return kind


def _check_same_tower(processor_config: Mapping[str, Any], config: VisionLanguageConfig) -> None:
    """LlavaProcessor counts image tokens itself; transformers fails on another count than the tower's."""
    expected = {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    for key, value in expected.items():
        if processor_config.get(key) not in (None, value):
            raise CheckpointError(
                f"{PROCESSOR_FILE} has {key} {processor_config[key]!r}, config.json has {value!r}: "
                "make them agree."
            )


def _image_spec(processor: ImageProcessorConfig, config: VisionLanguageConfig, *, can_pad: bool) -> ImageSpec:
    side = config.vision_config.image_size
    pads = can_pad and bool(processor.do_pad)
    resize, resize_to = _resize(processor)
    center_crop = _center_crop(processor)
    if center_crop is not None:
        is_fixed = center_crop == Size(height=side, width=side)
    else:
        is_fixed = resize_to == Size(height=side, width=side) and (resize == "exact" or pads)
    if not is_fixed:
        raise ValueError(f"its pictures do not come out as the {side} x {side} that the tower takes")
    return ImageSpec(
        pad_to_square=_background(processor.image_mean) if pads else None,
        resize=resize,
        resize_to=resize_to,
        resample=RESAMPLE[processor.resample],
        center_crop=center_crop,
        rescale_factor=processor.rescale_factor if processor.do_rescale else 1.0,
        mean=processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0),
        std=processor.image_std if processor.do_normalize else (1.0, 1.0, 1.0),
        size=Size(height=side, width=side),
        n_image_tokens=config.n_image_tokens(side),
        n_embd=config.text_config.hidden_size,
    )


def _resize(processor: ImageProcessorConfig) -> tuple[Literal["shortest_edge", "exact"] | None, Size | None]:
    if not processor.do_resize:
        return None, None
    size = processor.size or 224
    match {"shortest_edge": size} if isinstance(size, int) else _given(size):
        case {"shortest_edge": edge, **rest} if not rest:
            return "shortest_edge", Size(height=edge, width=edge)
        case {"height": height, "width": width, **rest} if not rest:
            return "exact", Size(height=height, width=width)
    raise ValueError(f"size {size} is neither a shortest_edge nor height and width")


def _center_crop(processor: ImageProcessorConfig) -> Size | None:
    if not processor.do_center_crop:
        return None
    size = processor.crop_size or 224
    match {"height": size, "width": size} if isinstance(size, int) else _given(size):
        case {"height": height, "width": width, **rest} if not rest:
            return Size(height=height, width=width)
    raise ValueError(f"crop_size {size} is not a height and a width")


def _given(size: Mapping[str, int | None]) -> dict[str, int]:
    return {key: value for key, value in size.items() if value is not None}


def _background(mean: Rgb) -> tuple[int, int, int]:
    red, green, blue = (int(channel * 255) for channel in mean)
    return red, green, blue


def _resized(spec: ImageSpec, config: VisionLanguageConfig, image_size: int) -> ImageSpec:
    """The spec for pictures of ``image_size``; a margin that is cropped away scales along."""
    patch_size = config.vision_config.patch_size
    if image_size <= 0 or image_size % patch_size:
        raise UsageError(
            f"image size {image_size} does not fit the tower: give a positive multiple of the patch size "
            f"{patch_size}, such as {8 * patch_size}."
        )
    if image_size > MAX_PATCHES_PER_SIDE * patch_size:
        raise UsageError(
            f"image size {image_size} makes more than {MAX_PATCHES_PER_SIDE} patches a side: "
            f"give at most {MAX_PATCHES_PER_SIDE * patch_size}."
        )
    scale = image_size / spec.size.height
    target = Size(height=image_size, width=image_size)
    resize_to = spec.resize_to and Size(
        height=round(spec.resize_to.height * scale), width=round(spec.resize_to.width * scale)
    )
    return replace(
        spec,
        resize_to=resize_to,
        center_crop=spec.center_crop and target,
        size=target,
        n_image_tokens=config.n_image_tokens(image_size),
    )
