"""Pictures of requests: URLs become pictures that a model can read, or are refused before they cost much."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from acestep_gguf.engine.engine import AceStep
from acestep_gguf.errors import ImageError
from acestep_gguf.prompt.image_source import image_source
from acestep_gguf.server.errors import ApiError
from acestep_gguf.server.request_models import EmbedsBase64
from acestep_gguf.server.settings import MAX_TOKEN_BYTES, ServerSettings
from acestep_gguf.vision.embeds_file import EmbedsBytes
from acestep_gguf.vision.encoder import Picture
from acestep_gguf.vision.image_file import read_file, undecoded

DATA: Final = "data:"
FILE: Final = "file:"

# What stands for a picture in a request: a URL, or image embeds.
PictureInput = str | EmbedsBase64


def with_pictures(
    messages: Sequence[Mapping[str, Any]], model: AceStep, settings: ServerSettings
) -> list[dict[str, Any]]:
    """Messages with opened pictures in the place of URLs and of image embeds.

    Raises:
        ApiError: a URL is not of a picture, or there are too many pictures or words.
        ImageError: a picture is damaged or too large, or image embeds are not this model's.
        PromptError: a data: URL or base64 is damaged, or the model has no vision tower.
    """
    parts = [part for message in messages for part in _parts(message)]
    n_images = sum(part["type"] == "image" for part in parts)
    if n_images > settings.max_images:
        raise ApiError(400, f"there are {n_images} pictures: send {settings.max_images} at most.")
    n_bytes = sum(len(part["text"]) for part in parts if part["type"] == "text")
    if n_bytes > MAX_TOKEN_BYTES * model.settings.n_ctx:
        raise ApiError(
            400,
            f"the text is far longer than the context of {model.settings.n_ctx} tokens: send less of it.",
            code="context_length_exceeded",
        )
    opened: dict[PictureInput, Picture] = {}  # one that is sent in each turn is opened once
    for part in parts:
        if part["type"] == "image" and (image := part["image"]) not in opened:
            if isinstance(image, EmbedsBase64):
                opened[image] = open_embeds(image, model)
            else:
                opened[image] = open_picture(image, model, settings)
    return [{**message, "content": _opened(message["content"], opened)} for message in messages]


def open_picture(url: str, model: AceStep, settings: ServerSettings) -> Picture:
    """The picture at a data: URL, or at a file: URL where they are allowed; errors as with_pictures."""
    data = picture_bytes(url, settings)
    width, height = undecoded(data).size
    if width * height > settings.max_pixels:
        raise ApiError(
            400,
            f"a picture has {width} x {height} pixels: send {settings.max_pixels} at most.",
            code="invalid_image",
        )
    if model.bundle.vision is not None and model.settings.vision is None:
        raise ApiError(
            400,
            "this server has no vision tower: send image_embeds, as `acestep-gguf encode` makes them.",
            code="invalid_image",
        )
    return model.prepare_image(data)


def open_embeds(embeds: EmbedsBase64, model: AceStep) -> Picture:
    """Image embeds that another machine's tower made; errors as with_pictures."""
    content = image_source({"type": "image", "base64": embeds.text})
    try:
        return model.prepare_image(EmbedsBytes(content))
    except ImageError as error:  # in our own words, whatever caused it
        raise ApiError(400, str(error), code="invalid_image") from error


def picture_bytes(url: str, settings: ServerSettings) -> bytes:
    """The file at a URL."""
    scheme = url[:5].lower()
    if scheme == DATA:
        data = image_source({"type": "image_url", "image_url": url})
        assert isinstance(data, bytes)  # noqa: S101 (what a data: URL gives)
        return data
    if scheme == FILE and settings.allow_path is not None:
        return read_file(_allowed(url, settings.allow_path))
    raise ApiError(
        400,
        'a picture is given by a data: URL, as in "data:image/png;base64,…": nothing is fetched for it.',
        code="invalid_image_url",
    )


def _allowed(url: str, folder: Path) -> Path:
    """The file that a URL names, in ``folder`` when all links are followed.

    What is outside and what is not there are refused alike: nobody learns which files there are.
    """
    refused = ApiError(400, "this file is not in the allowed folder.", code="invalid_image_url")
    try:
        split = urlsplit(url)
        path = Path(os.path.realpath(unquote(split.path), strict=True))
    except (OSError, ValueError):
        raise refused from None
    if split.netloc not in ("", "localhost") or not path.is_relative_to(os.path.realpath(folder)):
        raise refused
    if not path.is_file():
        raise refused
    return path


def _parts(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    content = message["content"]
    yield from [{"type": "text", "text": content}] if isinstance(content, str) else content


def _opened(content: Any, pictures: Mapping[PictureInput, Picture]) -> Any:
    if isinstance(content, str):
        return content
    return [
        {**part, "image": pictures[part["image"]]} if part["type"] == "image" else part for part in content
    ]
