"""How the image processor of a checkpoint prepares pictures, as an ImageSpec."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal

from acestep_gguf.bundle.image_spec import ImageSpec, Size
from acestep_gguf.convert.checkpoint.config import VisionLanguageConfig
from acestep_gguf.convert.checkpoint.folder import PROCESSOR_FILE, CheckpointFolder
from acestep_gguf.convert.checkpoint.image_processor_config import (
    RESAMPLE,
    ImageProcessorConfig,
    read_image_processor,
)
from acestep_gguf.convert.checkpoint.image_tiles import TILES, resized_tiles
from acestep_gguf.convert.checkpoint.tokenizer import Vocabulary
from acestep_gguf.errors import CheckpointError, UsageError

MAX_PATCHES_PER_SIDE: Final = 256
# Kinds of which this is the longest side of any picture.
LONGEST_EDGE: Final = ("PixtralImageProcessor", "Idefics2ImageProcessor")


def read_image_spec(
    folder: CheckpointFolder, config: VisionLanguageConfig, vocabulary: Vocabulary, image_size: int | None
) -> ImageSpec:
    """How pictures are prepared, for the checkpoint's picture size or for ``image_size`` instead.

    Tokens between tiles are those of ``vocabulary``.

    Raises:
        CheckpointError: no image processor, or it does not fit the tower.
        UnsupportedModelError: an image processor of another kind, or tiles that transformers does not run.
        UsageError: ``image_size`` does not fit the tower.
    """
    processor = read_image_processor(folder, config)
    try:
        spec = _image_spec(processor, config, vocabulary)
    except ValueError as error:
        raise CheckpointError(f"the image processor's config is damaged ({error}): get it again.") from error
    _check_same_tower(folder.processor_config, config)
    image_size = config.force_image_size if image_size is None else image_size
    return spec if image_size in (None, spec.size.height) else _resized(spec, config, image_size)


def _check_same_tower(processor_config: Mapping[str, Any], config: VisionLanguageConfig) -> None:
    """Processors count image tokens themselves; transformers fails on another count than the tower's."""
    expected = {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": int(config.vision_config.family.has_class_token),
        "image_seq_length": config.n_image_tokens(config.vision_config.image_size),
        "num_image_tokens": config.n_image_tokens(config.vision_config.image_size),
        "spatial_merge_size": 1,
        "image_seq_len": config.n_image_tokens(config.vision_config.image_size),
        "vision_aspect_ratio": config.vision_aspect_ratio,
    }
    for key, value in expected.items():
        if processor_config.get(key) not in (None, value):
            raise CheckpointError(
                f"{PROCESSOR_FILE} has {key} {processor_config[key]!r}, config.json has {value!r}: "
                "make them agree."
            )


def _image_spec(
    processor: ImageProcessorConfig, config: VisionLanguageConfig, vocabulary: Vocabulary
) -> ImageSpec:
    if (processor.kind == "PixtralImageProcessor") != (config.vision_config.family.row_end is not None):
        raise ValueError(f"{processor.kind} does not go with a {config.vision_config.model_type} tower")
    read_tiles, pads = TILES.get(processor.kind), processor.pads_to_square
    resize, resize_to = _resize(processor)
    center_crop = _center_crop(processor)
    side = config.vision_config.image_size
    size = Size(height=side, width=side)
    if resize_to is not None and config.vision_config.family.has_any_size:
        size = resize_to
    if read_tiles is not None:
        # Tiles are squares, and the whole picture is stretched to one: nothing is left to be cropped.
        is_fixed = resize_to == size and center_crop in (None, size)
        resize, center_crop = "exact", None
    elif center_crop is not None:
        is_fixed = center_crop == size
    else:
        is_fixed = resize_to == size and (resize == "exact" or pads)
    if not is_fixed:
        raise ValueError(f"its pictures do not come out as the {side} x {side} that the tower takes")
    return ImageSpec(
        pad_to_square=processor.background if pads else None,
        resize=resize,
        resize_to=resize_to,
        resample=RESAMPLE[processor.resample],
        center_crop=center_crop,
        rescale_factor=processor.rescale_factor if processor.do_rescale else 1.0,
        mean=processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0),
        std=processor.image_std if processor.do_normalize else (1.0, 1.0, 1.0),
        size=size,
        n_image_tokens=config.n_image_tokens(side),
        n_embd=config.text_config.hidden_size,
        tiles=read_tiles(config, processor, vocabulary) if read_tiles is not None else None,
    )


def _resize(processor: ImageProcessorConfig) -> tuple[Literal["shortest_edge", "exact"] | None, Size | None]:
    if not processor.do_resize:
        return None, None
    match processor.size:
        case {"longest_edge": int(side)} if processor.kind in LONGEST_EDGE:
            return "exact", Size(height=side, width=side)
    if processor.max_image_size is not None:
        side = processor.max_image_size.get("longest_edge", 0)  # of a tile
        return "exact", Size(height=side, width=side)
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


def _resized(spec: ImageSpec, config: VisionLanguageConfig, image_size: int) -> ImageSpec:
    """The spec for pictures of ``image_size``; a margin that is cropped away scales along."""
    patch_size = config.vision_config.patch_size
    step = patch_size * config.shuffle_factor
    if image_size <= 0 or image_size % step:
        raise UsageError(
            f"image size {image_size} does not fit the tower: give a positive multiple of {step}, such as "
            f"{8 * step}."
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
        tiles=resized_tiles(spec.tiles, scale, image_size),
    )
