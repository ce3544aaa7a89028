"""A picture's file, opened: which formats are read, and what is checked before anything is decoded."""

import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

from acestep_gguf.errors import ImageError, MissingPackageError
from acestep_gguf.prompt.image_source import MAX_IMAGE_BYTES
from acestep_gguf.storage.file_identity import file_state
from acestep_gguf.vision import pdf

ImageSource = str | os.PathLike[str] | bytes | Image.Image

# Pillow's names of them; MPO is a JPEG file with several pictures in it, as phones write.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", pdf.SUFFIX}
)
KINDS: Final = "JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIC or PDF"
HEIF_BRANDS: Final = tuple(
    b"ftyp" + brand
    for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)
# What files are often that cannot be read, by their first bytes.
OTHER_FORMATS: Final = ((b"<svg", "SVG"), (b"8BPS", "PSD"), (b"\0\0\0\x0cJXL ", "JPEG XL"))
MAX_PIXELS: Final = 100 * 10**6
PIXEL_BYTES: Final = 4  # of a colour picture in Pillow
# Bytes a pixel, at most, while a file is decoded and made RGB. libjpeg keeps the coefficients of a
# progressive picture, libwebp two canvases; Pillow's picture comes on top, and then the one in RGB.
# libtiff may have one strip of the whole picture, libavif and dav1d planes of 16 bits.
OPENING_BYTES: Final = {
    "PNG": 8, "JPEG": 12, "MPO": 12, "WEBP": 16, "GIF": 8, "BMP": 8, "TIFF": 12, "AVIF": 20, "HEIF": 20
}  # fmt: skip
MAX_TILE_PIXELS: Final = 2**20  # of a TIFF's tile that is larger than its picture
QUARTER_TURNS: Final = (5, 6, 7, 8)  # of EXIF's orientations
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
PAGE_SIDE: Final = 1024  # of a PDF's page, in pixels, where nobody says what it is for

# What Pillow raises on damaged files; its documentation names only the first two.
_DECODER_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
)


class Undecoded(NamedTuple):
    """A picture that is not decoded yet: its width and height, and memory in bytes while it becomes RGB.

    ``is_turned``, if it lies on its side until it is turned upright.
    """

    size: tuple[int, int]
    decoding_bytes: int
    decode: Callable[[], Image.Image]
    is_turned: bool = False

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height as a person sees it."""
        width, height = self.size
        return (height, width) if self.is_turned else (width, height)


def open_image(source: ImageSource, *, page_side: int = PAGE_SIDE) -> Image.Image:
    """Open and decode a picture, the first frame if it moves; its size is checked before it is decoded.

    Args:
        source: a path, bytes or a PIL image. ``scan.pdf#page=2`` is a page of a PDF.
        page_side: pixels of the shorter side of a PDF's page.

    Raises:
        ImageError: missing, of another format, damaged or too large; or a PDF of several pages.
        MissingPackageError: of a format that an extra reads.
    """
    return undecoded(source, page_side=page_side).decode()


def undecoded(source: ImageSource, *, page_side: int = PAGE_SIDE) -> Undecoded:
    """Open a picture, and check its size; arguments and errors are those of ``open_image``."""
    if isinstance(source, Image.Image):
        _check_size(source.size, "the picture")
        n_pixels = source.width * source.height
        memory = 2 * PIXEL_BYTES * n_pixels  # upright, and in RGB
        with refusing_damage("the picture"):
            return Undecoded(source.size, memory, lambda: source, _is_turned(source))
    if not isinstance(source, str | os.PathLike | bytes):
        raise ImageError(f"a picture is given as {type(source).__name__}: give a path, bytes or a PIL image.")
    name = picture_name(source)
    data = source if isinstance(source, bytes) else read_file(Path(name))
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"{name} is larger than {MAX_IMAGE_BYTES >> 20} MiB: give a smaller picture.")
    number = None if isinstance(source, bytes) else pdf.split_page(Path(name))[1]
    if pdf.is_pdf(data):
        page = pdf.Page(data, name, number, page_side)
        _check_size(page.size, name)
        if page.picture_pixels > MAX_PIXELS:
            raise too_many_pixels(name)
        return Undecoded(page.size, page.rendering_bytes, page.render)
    if number is not None:
        raise ImageError(f"{name} is no PDF, and has no pages: leave out #page={number}.")
    with refusing_damage(name):
        image = _identified(data, name)
        _check_size(image.size, name)
        _check_tiles(image, name)
        is_turned = _is_turned(image)
    # libwebp has a copy of the file.
    decoding_bytes = 2 * len(data) + OPENING_BYTES[str(image.format)] * image.width * image.height
    return Undecoded(image.size, decoding_bytes, lambda: _decoded(image, name), is_turned)


def picture_name(source: ImageSource) -> str:
    """What messages call a picture: its path, or "the picture"."""
    return os.fsdecode(source) if isinstance(source, str | os.PathLike) else "the picture"


def read_file(path: Path) -> bytes:
    """The bytes of a picture's file, one more than ``MAX_IMAGE_BYTES`` at most; errors as ``opened_file``."""
    with opened_file(path) as file:
        return file.read(MAX_IMAGE_BYTES + 1)


@contextmanager
def opened_file(path: Path) -> Iterator[BinaryIO]:
    """A picture's file, to be read.

    Raises:
        ImageError: it is missing, not a regular file, or cannot be read.
    """
    path, _ = pdf.split_page(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
            raise ImageError(f"{path} is not a file: give {KINDS}.")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror}): give {KINDS}.") from error
    except ValueError as error:  # a null character in the name
        raise ImageError(f"{path} cannot be read ({error}): give {KINDS}.") from error


def picture_state(path: Path) -> tuple[int, ...] | None:
    """Another one whenever the picture at ``path`` is, within one process; None as of ``file_state``."""
    file, number = pdf.split_page(path)
    state = file_state(file)
    return None if state is None else (*state, number or 0)


def pdf_pages(path: str | os.PathLike[str]) -> list[Path]:
    """The pages of a PDF, each as a path that stands for a picture: ``scan.pdf#page=1`` and so on.

    Raises:
        ImageError: it is missing, no PDF, encrypted, damaged or too large.
        MissingPackageError: pypdfium2 is not installed.
    """
    data = read_file(Path(path))
    if not pdf.is_pdf(data):
        raise ImageError(f"{os.fspath(path)} is no PDF: give it as it is.")
    n_pages = pdf.n_pages(data, os.fspath(path))
    return [Path(f"{os.fspath(path)}{pdf.PAGE_MARK}{number}") for number in range(1, n_pages + 1)]


def pictures_of(path: Path) -> list[Path]:
    """The pictures that a file has: the pages of a PDF, else the file itself; errors as of ``pdf_pages``."""
    return pdf_pages(path) if path.suffix.lower() == pdf.SUFFIX else [path]


@contextmanager
def refusing_damage(name: str) -> Iterator[None]:
    """Let what Pillow raises inside be ImageErrors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what we check, refuse or need not know
            yield
    except Image.DecompressionBombError:
        raise too_many_pixels(name) from None
    except _DECODER_ERRORS as error:
        raise ImageError(f"{name} is damaged ({error}): save or copy it again.") from error


def too_many_pixels(name: str) -> ImageError:
    """The error of a picture that is too large to be decoded."""
    return ImageError(f"{name} has more than {MAX_PIXELS // 10**6} million pixels: give a smaller picture.")


def _identified(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data.startswith(HEIF_BRANDS, 4):
            return _heif(data, name)
        for magic, format in OTHER_FORMATS:
            if data.startswith(magic):
                raise ImageError(f"{name} is {format}, which is not read: save it as PNG or JPEG.") from None
        raise ImageError(f"{name} is not a picture that can be read: give {KINDS}.") from None


def _heif(data: bytes, name: str) -> Image.Image:
    """Not by way of Image.open, to which it would have to be made known for the whole program."""
    try:
        from pillow_heif import HeifImageFile  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingPackageError("pillow-heif", "heic", what=f"{name} is HEIC, which") from error
    image: Image.Image = HeifImageFile(io.BytesIO(data))
    return image


def _decoded(image: Image.Image, name: str) -> Image.Image:
    with refusing_damage(name):
        image.load()
        _check_size(image.size, name)  # a HEIC may turn out larger than its head says
    return image


def _is_turned(image: Image.Image) -> bool:
    """Whether its orientation says so, by EXIF; what a PNG says behind its pixels is not seen here."""
    if image.format == "PNG" and "exif" not in image.info:
        return False
    return image.getexif().get(ExifTags.Base.Orientation) in QUARTER_TURNS


def _check_size(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise too_many_pixels(name)
    if min(size) < 1:
        raise ImageError(f"{name} is empty: give a picture with at least one pixel.")


def _check_tiles(image: Image.Image, name: str) -> None:
    """Refuse a TIFF whose tiles would take more memory than its picture."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(TILE_WIDTH, 0) * tags.get(TILE_LENGTH, 0) > max(image.width * image.height, MAX_TILE_PIXELS):
        raise ImageError(f"{name} has tiles larger than itself: save it again.")
