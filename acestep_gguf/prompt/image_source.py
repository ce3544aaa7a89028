"""Where an image part has its picture: a value as it is, a path, a data: URL or base64.

Nothing is loaded from a network.
"""

import binascii
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from acestep_gguf.errors import PromptError

MAX_IMAGE_BYTES: Final = 128 * 2**20  # as much as a picture's file may have
MAX_URL_CHARS: Final = MAX_IMAGE_BYTES // 3 * 4 + 1024

_URLS: Final = ("data:", "file:", "http:", "https:")


def image_source(part: Mapping[str, Any]) -> Any:
    """The picture of an image part: bytes, a path, or what the caller gave as ``image``; None without one.

    Raises:
        PromptError: it has several, or one that is not what its key says.
    """
    given = [key for key in _READERS if part.get(key) is not None]
    if len(given) > 1:
        raise PromptError(f"an image part has {' and '.join(given)}: give one of them.")
    return _READERS[given[0]](part[given[0]]) if given else None


def _image(image: Any) -> Any:
    return _url(image) if isinstance(image, str) and image.lower().startswith(_URLS) else image


def _path(path: Any) -> Any:
    if not isinstance(path, str | os.PathLike):
        raise PromptError(f"the path of an image part is given as {type(path).__name__}: give a string.")
    return path


def _image_url(image_url: Any) -> bytes:
    return _url(image_url.get("url") if isinstance(image_url, Mapping) else image_url)


def _url(url: Any) -> bytes:
    if not isinstance(url, str):
        raise PromptError('the URL of an image part must be a string: "data:image/png;base64,…".')
    _check_length(url)
    header, _, data = url.partition(",")
    scheme, _, media_type = header.lower().partition(":")
    if scheme in {"http", "https"}:
        raise PromptError(
            "pictures are not loaded from a network: save them, and give a path or a data: URL."
        )
    if scheme != "data":
        raise PromptError(
            'a picture\'s URL must begin with data: for a file, give {"type": "image", "path": …}.'
        )
    if not (media_type.startswith("image/") and media_type.endswith(";base64")):
        raise PromptError("a data: URL must begin with data:image/png;base64, or the like.")
    return _base64(data)


def _base64(data: Any) -> bytes:
    if not isinstance(data, str):
        raise PromptError(f"a picture's base64 is given as {type(data).__name__}: give a string.")
    _check_length(data)
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except ValueError as error:
        raise PromptError(f"a picture's base64 is damaged ({error}): encode its bytes again.") from error


def _check_length(text: str) -> None:
    if len(text) > MAX_URL_CHARS:
        raise PromptError(f"a picture is larger than {MAX_IMAGE_BYTES >> 20} MiB: give a smaller one.")


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "image": _image,
    "path": _path,
    "url": _url,
    "base64": _base64,
    "image_url": _image_url,
}
