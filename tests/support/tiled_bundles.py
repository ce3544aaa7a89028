"""A bundle whose pictures are cut into tiles, made of one whose pictures are not: a tile is what it sees."""

import os
from dataclasses import replace
from pathlib import Path

from acestep_gguf.bundle.image_spec import ClosestAspectTiles
from acestep_gguf.bundle.schema import Bundle

TILES = ClosestAspectTiles(min_tiles=1, max_tiles=6)


def tiled_bundle(bundle: Path, folder: Path) -> Path:
    """``folder``, with links to the files of ``bundle``, and pictures of up to six tiles."""
    folder.mkdir()
    for path in bundle.iterdir():
        if path.name != "bundle.json":
            os.link(path, folder / path.name)
    whole = Bundle.read(bundle)
    assert whole.image is not None
    image = replace(
        whole.image,
        pad_to_square=None,
        resize="exact",
        resize_to=whole.image.size,
        center_crop=None,
        fill=None,
        tiles=TILES,
    )
    replace(whole, image=image, min_reader_version=3).write(folder)
    return folder
