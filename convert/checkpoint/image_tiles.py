"""Into which tiles a picture is cut: what config.json and the image processor say together."""

import re
from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import Final

from msgspec.structs import replace

from acestep_gguf.bundle.image_spec import (
    AnySize,
    ClosestAspectTiles,
    LongestEdgeTiles,
    PinpointTiles,
    Quarters,
    TileMarks,
    Tiles,
)
from acestep_gguf.convert.checkpoint.config import VisionLanguageConfig
from acestep_gguf.convert.checkpoint.image_processor_config import ImageProcessorConfig
from acestep_gguf.convert.checkpoint.tokenizer import Vocabulary
from acestep_gguf.errors import CheckpointError, UnsupportedModelError

TilesReader = Callable[[VisionLanguageConfig, ImageProcessorConfig, Vocabulary], Tiles]

# Tokens around SmolVLM's tiles.
AROUND: Final = "<fake_token_around_image>"
WHOLE: Final = "<global-img>"
TILE: Final = "<row_{row}_col_{column}>"
# A line's end as byte-level BPE spells it.
NEWLINE: Final = "\u010a"


def _next_tiles(
    config: VisionLanguageConfig, processor: ImageProcessorConfig, _: Vocabulary
) -> PinpointTiles:
    return PinpointTiles(grids=_grids(config, processor))


def _onevision_tiles(
    config: VisionLanguageConfig, processor: ImageProcessorConfig, _: Vocabulary
) -> PinpointTiles:
    ratio = config.vision_aspect_ratio
    max_crops = re.fullmatch(r"anyres_max_([1-9]\d{0,2})", ratio or "")
    if max_crops is None:
        raise UnsupportedModelError(
            f"vision_aspect_ratio is {ratio!r}: supported is anyres_max_ with a number."
        )
    return PinpointTiles(
        grids=_grids(config, processor), max_crops=int(max_crops[1]), square_fill=processor.background
    )


def _internvl_tiles(
    _: VisionLanguageConfig, processor: ImageProcessorConfig, __: Vocabulary
) -> ClosestAspectTiles:
    """InternVL's processor cuts pictures up whatever the file's crop_to_patches says."""
    return ClosestAspectTiles(min_tiles=processor.min_patches, max_tiles=processor.max_patches)


def _idefics3_tiles(
    config: VisionLanguageConfig, processor: ImageProcessorConfig, vocabulary: Vocabulary
) -> LongestEdgeTiles:
    if not processor.do_image_splitting:
        raise UnsupportedModelError("an image processor that does not cut pictures up is not supported.")
    match processor.size:
        case {"longest_edge": int(longest_edge)}:
            n_side = -(-longest_edge // config.vision_config.image_size)
            marks = tile_marks(vocabulary.ids, vocabulary.merges, n_side)
            return LongestEdgeTiles(longest_edge=longest_edge, marks=marks)
    raise ValueError(f"size {processor.size} is no longest_edge")


def _any_size(config: VisionLanguageConfig, processor: ImageProcessorConfig, _: Vocabulary) -> AnySize:
    step = config.vision_config.patch_size
    given = processor.patch_size
    if (given if isinstance(given, int) else given and given.get("height")) != step or (
        isinstance(given, dict) and given.get("width") != step
    ):
        raise ValueError(f"patch_size {given} is not the tower's {step}")
    return AnySize(step=step)


def _quarters(
    config: VisionLanguageConfig, processor: ImageProcessorConfig, vocabulary: Vocabulary
) -> Quarters:
    match processor.size:
        case {"shortest_edge": int(shortest_edge)}:
            return Quarters(
                splits=processor.do_image_splitting,
                shortest_edge=shortest_edge,
                step=config.vision_config.patch_size,
                between=_token_id(vocabulary.ids, AROUND),
            )
    raise ValueError(f"size {processor.size} has no shortest_edge")


def tile_marks(ids: Mapping[str, int], merges: Container[str], n_side: int) -> TileMarks:
    """The tokens around ``n_side`` rows and columns of tiles, in a byte-level BPE of ``merges``.

    Raises:
        CheckpointError: one of them is not in the vocabulary.
    """

    token_id = partial(_token_id, ids)
    line, sides = token_id(NEWLINE), range(1, n_side + 1)
    has_blank_line = f"{NEWLINE} {NEWLINE}" in merges
    return TileMarks(
        around=token_id(AROUND),
        whole=token_id(WHOLE),
        tiles=tuple(
            tuple(token_id(TILE.format(row=row, column=column)) for column in sides) for row in sides
        ),
        line=(line,),
        blank_line=(token_id(2 * NEWLINE),) if has_blank_line else (line, line),
    )


def _token_id(ids: Mapping[str, int], token: str) -> int:
    if token not in ids:
        raise CheckpointError(f"the tokenizer has no token {token}: get the files of one model.")
    return ids[token]


def resized_tiles(tiles: Tiles | None, scale: float, longest_edge: int) -> Tiles | None:
    """The same for tiles whose sides are ``scale`` times as long: pictures become as many of them.

    Of quarters, no side is longer than ``longest_edge``.
    """
    if isinstance(tiles, Quarters):
        return replace(tiles, shortest_edge=min(tiles.shortest_edge, longest_edge))
    if not isinstance(tiles, LongestEdgeTiles):
        return tiles
    return LongestEdgeTiles(longest_edge=2 * round(tiles.longest_edge * scale / 2), marks=tiles.marks)


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
    "Idefics2ImageProcessor": _quarters,
    "Idefics3ImageProcessor": _idefics3_tiles,
    "LlavaNextImageProcessor": _next_tiles,
    "LlavaOnevisionImageProcessor": _onevision_tiles,
    "PixtralImageProcessor": _any_size,
    "SmolVLMImageProcessor": _idefics3_tiles,
}
