"""``acestep-gguf encode``: pictures become files of image embeds, for machines that only run the decoder."""

from pathlib import Path
from typing import Annotated

import typer

from acestep_gguf.cli.options import BundleFolder, MaxTiles, Threads, TowerPrecision, path
from acestep_gguf.cli.pictures import pictures_in_folders
from acestep_gguf.cli.terminal import for_stdout


def encode(
    bundle: BundleFolder,
    pictures: Annotated[
        list[Path], typer.Argument(parser=path, metavar="PICTURE...", help="Pictures, or folders of them.")
    ],
    *,
    out: Annotated[
        Path, typer.Option("-o", "--output", parser=path, help="Folder for the files; made if it is missing.")
    ],
    vision: TowerPrecision = None,
    threads: Threads = None,
    max_tiles: MaxTiles = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are in the way.")] = False,
) -> None:
    """Turn pictures into files of image embeds.

    Any machine can then answer questions about them with `run --embeds`, without the tower.
    """
    from acestep_gguf.vision.encode_pictures import encode_pictures

    found = [Path(picture) for picture in pictures_in_folders(map(str, pictures))]
    made = encode_pictures(
        bundle, found, out, vision=vision, n_threads=threads, max_tiles=max_tiles, force=force
    )
    for done in made:
        took = "was there already" if done.seconds is None else f"{done.seconds:.2f} s"
        print(f"{for_stdout(str(done.path))}  {done.n_image_tokens} tokens  {took}", flush=True)
