"""``acestep-gguf encode``: pictures become files of image embeds, for machines that only run the decoder."""

from pathlib import Path
from typing import Annotated

import typer

from acestep_gguf.cli.options import BundleFolder, Threads, TowerPrecision
from acestep_gguf.cli.terminal import end_at_once_on_ctrl_c, for_stdout


def encode(
    bundle: BundleFolder,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE", help="JPEG, PNG or WEBP.")],
    *,
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder of the files, made if need be.")],
    vision: TowerPrecision = None,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files of other pictures.")] = False,
) -> None:
    """Write the image embeds of pictures to files, one a picture, for `run --embeds` on any machine."""
    from acestep_gguf.vision.encode_pictures import encode_pictures

    end_at_once_on_ctrl_c()
    for done in encode_pictures(bundle, pictures, out, vision=vision, n_threads=threads, force=force):
        took = "was there already" if done.seconds is None else f"{done.seconds:.2f} s"
        print(f"{for_stdout(str(done.path))}  {done.n_image_tokens} tokens  {took}", flush=True)
