"""The pages of a PDF as pictures: ``scan.pdf#page=2`` is a path of one."""

import math
import os
import re
import threading
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from PIL import Image

from acestep_gguf.errors import ImageError, MissingPackageError

SUFFIX: Final = ".pdf"
PAGE_MARK: Final = "#page="
MAX_PAGES: Final = 10_000
LEAST_POINTS, MOST_POINTS = 0.01, 1e6  # of a side; NaN is neither
# Bytes a pixel while a page is rendered: PDFium's three, and Pillow's picture.
RENDERING_BYTES: Final = 8
# Bytes a pixel of a picture in a page, while PDFium decodes it: libjpeg's, as of a progressive JPEG file.
PICTURE_BYTES: Final = 12

_PAGE: Final = re.compile(rf"(.+){PAGE_MARK}([1-9][0-9]{{0,5}})", re.DOTALL)
# PDFium computes for one thread at a time, whatever document it is.
_pdfium: Final = threading.Lock()


def split_page(path: Path) -> tuple[Path, int | None]:
    """The file and the number of the page that a path names, from 1; None without one."""
    found = _PAGE.fullmatch(os.fspath(path))
    if found is None or os.path.lexists(path):
        return path, None
    return Path(found[1]), int(found[2])


def is_pdf(data: bytes) -> bool:
    """Whether a file is a PDF, by its beginning, where readers have always let other bytes come first."""
    return b"%PDF-" in data[:1024]


def n_pages(data: bytes, name: str) -> int:
    """Pages of a PDF; errors are those of ``Page``."""
    with _opened(data, name) as document:
        return _checked_length(document, name)


class Page:
    """A page that is not rendered yet.

    Args:
        data: the whole PDF.
        name: what messages call it.
        number: of the page, from 1; None for the only one.
        side: pixels of its shorter side.

    Raises:
        ImageError: the PDF is encrypted or damaged, or has no such page, or several and ``number`` is None.
        MissingPackageError: pypdfium2 is not installed.
    """

    def __init__(self, data: bytes, name: str, number: int | None, side: int) -> None:
        self._data = data
        self._name = name
        with _opened(data, name) as document:
            length = _checked_length(document, name)
            if number is None and length > 1:
                raise ImageError(f"{name} has {length} pages: name one of them, as in FILE.pdf#page=1.")
            self._index = (number or 1) - 1
            if self._index >= length:
                raise ImageError(f"{name} is not there, its PDF has {length} pages: name one of them.")
            page = document[self._index]
            points: tuple[float, float] = page.get_size()
            if not all(LEAST_POINTS < point < MOST_POINTS for point in points):
                raise ImageError(f"{name} is empty or huge: give another page.")
            self._scale = side / min(points)
            self.size = math.ceil(points[0] * self._scale), math.ceil(points[1] * self._scale)
            self.picture_pixels = _most_picture_pixels(page)

    @property
    def rendering_bytes(self) -> int:
        """Memory in bytes that ``render`` takes, with the largest of the page's pictures."""
        width, height = self.size
        return 2 * len(self._data) + RENDERING_BYTES * width * height + PICTURE_BYTES * self.picture_pixels

    def render(self) -> Image.Image:
        """The page as it would be printed, with its form filled in, RGB.

        Raises:
            ImageError: damaged.
        """
        with _opened(self._data, self._name) as document:
            bitmap = document[self._index].render(scale=self._scale, limit_image_cache=True)
            try:
                image: Image.Image = bitmap.to_pil()  # a copy: Pillow has no three bytes a pixel
                return image
            finally:
                bitmap.close()


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Any]:
    """A pypdfium2.PdfDocument, for this thread alone."""
    try:
        import pypdfium2  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise MissingPackageError("pypdfium2", "pdf", what=f"{name} is a PDF, which") from error
    with _pdfium:
        try:
            with pypdfium2.PdfDocument(data) as document:
                document.init_forms()
                yield document
        except pypdfium2.PdfiumError as error:
            codes = pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY
            # PDFium does not set its last error for each: it may be that of another file.
            if error.err_code in codes and b"/Encrypt" in data:
                raise ImageError(f"{name} is encrypted: save it without a password.") from error
            raise ImageError(f"{name} is damaged: save or copy it again.") from error


def _checked_length(document: Sized, name: str) -> int:
    n_pages = len(document)
    if not 1 <= n_pages <= MAX_PAGES:
        raise ImageError(f"{name} has {n_pages} pages: give a PDF of 1 to {MAX_PAGES:,}.")
    return n_pages


def _most_picture_pixels(page: Any) -> int:
    """Pixels of the largest picture in a page, as their heads say."""
    import pypdfium2.raw  # noqa: PLC0415 (an extra)

    pictures = page.get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE])
    n_pixels: list[int] = [math.prod(picture.get_px_size()) for picture in pictures]
    return max(n_pixels, default=0)
