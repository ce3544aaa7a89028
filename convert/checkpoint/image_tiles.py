"""Into which tiles a picture is cut: what config.json and the image processor say together."""

import re
from collections.abc import Callable, Mapping
from typing import Final

from acestep_gguf.bundle.image_spec import ClosestAspectTiles, PinpointTiles
from acestep_gguf.convert.checkpoint.config import VisionLanguageConfig
from acestep_gguf.convert.checkpoint.image_processor_config import ImageProcessorConfig
from acestep_gguf.errors import CheckpointError, UnsupportedModelError

TilesReader = Callable[[VisionLanguageConfig, ImageProcessorConfig], ClosestAspectTiles | PinpointTiles]


def _next_tiles(config: VisionLanguageConfig, processor: ImageProcessorConfig) -> PinpointTiles:
    return PinpointTiles(grids=_grids(config, processor))


def _onevision_tiles(config: VisionLanguageConfig, processor: ImageProcessorConfig) -> PinpointTiles:
    ratio = config.vision_aspect_ratio
    max_crops = re.fullmatch(r"anyres_max_([1-9]\d{0,2})", ratio or "")
    if max_crops is None:
        raise UnsupportedModelError(
            f"vision_aspect_ratio is {ratio!r}: supported is anyres_max_ with a number."
        )
    return PinpointTiles(
        grids=_grids(config, processor), max_crops=int(max_crops[1]), square_fill=processor.background
    )


def _internvl_tiles(_: VisionLanguageConfig, processor: ImageProcessorConfig) -> ClosestAspectTiles:
    """InternVL's processor cuts pictures up whatever the file's crop_to_patches says."""
    return ClosestAspectTiles(min_tiles=processor.min_patches, max_tiles=processor.max_patches)


def _grids(config: VisionLanguageConfig, processor: ImageProcessorConfig) -> tuple[tuple[int, int], ...]:
    """Rows and columns of tiles, in the order of the files: of equally good ones the first is taken.

    The model finds the tiles of a picture by config.json, its processor cuts them by its own file.
    """
    default = [tuple(pinpoint) for pinpoint in config.family.defaults["image_grid_pinpoints"]]
    pinpoints = config.image_grid_pinpoints or default
    if (processor.image_grid_pinpoints or default) != pinpoints:
        raise CheckpointError(
            "config.json and the image processor's config have other image_grid_pinpoints: make them agree."
        )
    side, vision = config.vision_config.image_size, config.vision_config
    if (config.vision_feature_select_strategy == "default") != vision.family.has_class_token:
        raise UnsupportedModelError(
            f"the vision_feature_select_strategy {config.vision_feature_select_strategy!r} leaves no "
            f"square of features in a tile of a {vision.model_type}: transformers does not run it, either."
        )
    for height, width in pinpoints:
        if height % side or width % side:
            raise UnsupportedModelError(
                f"image_grid_pinpoints have {height} x {width}, which is no number of {side} x {side} tiles."
            )
    return tuple((height // side, width // side) for height, width in pinpoints)


# By the kind of image processor.
TILES: Final[Mapping[str, TilesReader]] = {
    "GotOcr2ImageProcessor": _internvl_tiles,
    "LlavaNextImageProcessor": _next_tiles,
    "LlavaOnevisionImageProcessor": _onevision_tiles,
}
