"""Pictures become files of image embeds, for machines that only run the decoder."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.bundle.names import VisionPrecision, vision_precision_from
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.cpus import usable_cpus
from acestep_gguf.errors import ImageError, UsageError
from acestep_gguf.llama.params import MOST_THREADS
from acestep_gguf.options import check_integer
from acestep_gguf.vision.embeds_file import SUFFIX, read_embeds, write_embeds
from acestep_gguf.vision.encoder import ImageEncoder, Picture
from acestep_gguf.vision.image import normalized
from acestep_gguf.vision.image_file import pictures_of


@dataclass(frozen=True, slots=True)
class Encoded:
    """A file of image embeds; ``seconds`` that encoding took, None if the file was there already."""

    path: Path
    n_image_tokens: int
    seconds: float | None


def encode_pictures(
    folder: Path,
    pictures: Sequence[Path],
    out: Path,
    *,
    vision: str | None = None,
    n_threads: int | None = None,
    max_tiles: int | None = None,
    force: bool = False,
) -> Iterator[Encoded]:
    """Write the image embeds of ``pictures`` into the folder ``out``, one file a picture, named after it.

    The pages of a PDF are pictures.

    A file that is there and has the same tower's embeds of the same pixels is left as it is, so that the same
    call carries on where it was stopped; another one is replaced only with ``force``.

    Raises:
        BundleError: ``folder`` is not a sound bundle.
        PromptError: it has no vision tower.
        ImageError: a picture or the folder ``out`` cannot be used, or a file is in the way.
        MissingPackageError: a picture is of a format that an extra reads.
        UsageError: two pictures have one name, or ``vision`` or ``n_threads`` is out of its range.
        DecodeError: onnxruntime failed.
    """
    bundle = Bundle.read(folder)
    _, image = bundle.tower()
    precision = None if vision is None else vision_precision_from(vision)
    n_threads = n_threads if n_threads is not None else usable_cpus()
    check_integer("n_threads", n_threads, 1, MOST_THREADS)
    pictures = [page for picture in pictures for page in pictures_of(picture)]
    paths = _paths(pictures, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{out} cannot be made ({error.strerror}): choose another folder.") from error
    if max_tiles is not None:
        check_integer("max_tiles", max_tiles, 1, 2**20)
    encoder = ImageEncoder(folder, bundle, n_threads=n_threads, precision=precision, max_tiles=max_tiles)
    for source, path in zip(pictures, paths, strict=True):
        picture = encoder.prepare(source)
        pixels_sha256 = _pixels_sha256(picture, image)
        if os.path.exists(path) and not force:
            _check_is(path, bundle, pixels_sha256, encoder.precision)
            yield Encoded(path, picture.input.n_tokens, None)
            continue
        start = perf_counter()
        write_encoded(path, picture, encoder, bundle, max_tiles=max_tiles)
        yield Encoded(path, picture.input.n_tokens, perf_counter() - start)


def write_encoded(
    path: Path, picture: Picture, encoder: ImageEncoder, bundle: Bundle, *, max_tiles: int | None = None
) -> None:
    """Write the embeds of a picture that ``encoder``, made for ``bundle`` and ``max_tiles``, has opened.

    Raises:
        ImageError: ``path`` cannot be written.
        BundleError: the tower's files are missing or damaged.
        DecodeError: onnxruntime failed.
    """
    _, image = bundle.tower()
    write_embeds(
        path,
        encoder.encode(picture),
        bundle=bundle,
        precision=encoder.precision,
        pixels_sha256=_pixels_sha256(picture, image),
        size=None if image.tiles is None else picture.size,
        max_tiles=max_tiles,
    )


def _paths(pictures: Sequence[Path], out: Path) -> list[Path]:
    """Where the embeds of each picture go."""
    paths = [out / f"{picture.name}{SUFFIX}" for picture in pictures]
    by_path = dict(zip(paths, pictures, strict=True))
    for path, picture in zip(paths, pictures, strict=True):
        if by_path[path] != picture:
            raise UsageError(
                f"{picture} and {by_path[path]} would both become {path}: encode them into two folders."
            )
    return paths


def _pixels_sha256(picture: Picture, image: ImageSpec) -> str:
    assert picture.crops is not None  # noqa: S101 (it is no file of embeds)
    hashed = hashlib.sha256()
    for crop in picture.crops:
        hashed.update(normalized(crop, image).data)
    return hashed.hexdigest()


def _check_is(path: Path, bundle: Bundle, pixels_sha256: str, precision: VisionPrecision) -> None:
    try:
        _, metadata = read_embeds(path, bundle)
    except ImageError as error:
        raise ImageError(f"{error} Or replace it: force=True.", settings=["force"]) from error
    if (metadata.pixels_sha256, metadata.precision) != (pixels_sha256, precision):
        raise ImageError(
            f"{path} is of another picture or tower: choose another folder, or replace it: force=True.",
            settings=["force"],
        )
