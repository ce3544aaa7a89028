"""``acestep-gguf import``: a decoder and perhaps an mmproj file of llama.cpp become a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from acestep_gguf.bundle.names import vision_precision_from
from acestep_gguf.cli.options import CalibrationPictures, LogJson, Threads, TowerPrecisions, filled, path
from acestep_gguf.errors import UsageError


def import_(
    files: Annotated[
        list[Path],
        typer.Argument(
            parser=path,
            metavar="DECODER.gguf [MMPROJ.gguf]",
            help="Decoder of any type and, for pictures, its tower and projector.",
        ),
    ],
    out: Annotated[Path, typer.Argument(parser=path, metavar="OUT", help="New folder for the bundle.")],
    *,
    name: Annotated[
        str | None,
        typer.Option(
            parser=filled, metavar="NAME", help="Name of the model. By default that in the decoder."
        ),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="vicuna (LLaVA 1.5) or chatml, instead of the decoder's own."),
    ] = None,
    chat_template_file: Annotated[
        Path | None,
        typer.Option(parser=path, help="Chat template, a Jinja file, instead of the decoder's own."),
    ] = None,
    image_token: Annotated[
        str | None,
        typer.Option(
            parser=filled,
            metavar="TOKEN",
            help="What stands for a picture in the chat template. By default <image>.",
        ),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the decoder even where a hard link would do.")
    ] = False,
    vision: TowerPrecisions = None,
    calibration: CalibrationPictures = None,
    threads: Threads = None,
    log_json: LogJson = False,
) -> None:
    """Make a bundle of a decoder, and an mmproj file if it can see, of llama.cpp."""
    from acestep_gguf.cli.progress import display
    from acestep_gguf.convert.llama_cpp.gguf_import import import_gguf
    from acestep_gguf.convert.llama_cpp.gguf_prompt import choose_template

    if len(files) > 2:
        raise UsageError(f"{len(files)} files were given: give a decoder, or a decoder and its mmproj.")
    with display(log_json=log_json) as show:
        import_gguf(
            files[0],
            out,
            mmproj=files[1] if len(files) == 2 else None,
            name=name,
            chat_template=choose_template(chat_template, chat_template_file),
            image_token=image_token,
            copy=copy,
            vision=list(map(vision_precision_from, vision)) if vision else None,
            calibration=calibration,
            threads=threads,
            on_event=show,
        )
