"""Files of image embeds: what one machine's vision tower makes of a picture, for another machine's decoder.

A safetensors file (https://huggingface.co/docs/safetensors) with the two arrays of ``ImageEmbeds``, and in
its metadata what they belong to. It comes from outside, so everything in it is checked before it is used.
"""

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.bundle.names import VisionPrecision
from acestep_gguf.bundle.schema import Bundle, VisionFile
from acestep_gguf.errors import ImageError
from acestep_gguf.storage.atomic_file import write_atomically
from acestep_gguf.vision.blocks import Block, n_tokens
from acestep_gguf.vision.embeds import ImageEmbeds
from acestep_gguf.vision.tiling import tiling_of

SUFFIX: Final = ".safetensors"
FORMAT: Final = "acestep-gguf image embeds 1"
MAX_HEADER_BYTES: Final = 2**16

# Values of safetensors' metadata are strings; up to 8 digits are more than any picture has.
Number = Annotated[str, msgspec.Meta(pattern=r"\A([1-9][0-9]{0,7})?\Z")]
Hash = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What the embeds belong to.

    ``model`` is ``model_identity``, ``precision`` the tower's; ``pixels_sha256`` is over the picture's
    ``pixel_values``, ``data_sha256`` is ``ImageEmbeds.sha256``. Of a model that cuts pictures up,
    ``width`` and ``height`` are the picture's, and ``max_tiles`` is into how many it was cut at most.
    """

    format: Literal["acestep-gguf image embeds 1"] = FORMAT
    model: Hash
    precision: VisionPrecision
    pixels_sha256: Hash
    data_sha256: Hash
    width: Number = ""
    height: Number = ""
    max_tiles: Number = ""

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the picture, if it was cut up."""
        return (int(self.width), int(self.height)) if self.width and self.height else None

    @property
    def most_tiles(self) -> int | None:
        """Into how many tiles it was cut at most; None for as many as the model was made for."""
        return int(self.max_tiles or 0) or None


class Header(msgspec.Struct, frozen=True):
    """The JSON header of a safetensors file."""

    metadata: Metadata = msgspec.field(name="__metadata__")


@dataclass(frozen=True, slots=True)
class EmbedsFile:
    """A file that ``acestep-gguf encode`` wrote, given in the place of a picture."""

    path: str | os.PathLike[str]

    def read(self, bundle: Bundle) -> ImageEmbeds:
        """The image embeds; the errors are those of ``read_embeds``."""
        return self.checked(bundle)[0]

    def checked(self, bundle: Bundle) -> tuple[ImageEmbeds, Metadata]:
        """As ``read_embeds``."""
        return read_embeds(Path(self.path), bundle)


@dataclass(frozen=True, slots=True)
class EmbedsBytes:
    """The bytes of such a file, as another machine sent them."""

    content: bytes = field(repr=False)

    @property
    def path(self) -> str:
        """What errors call it."""
        return "what was sent"

    def checked(self, bundle: Bundle) -> tuple[ImageEmbeds, Metadata]:
        """As ``read_embeds``."""
        return check_embeds(self.content, bundle, self.path)


EmbedsSource = EmbedsFile | EmbedsBytes


def model_identity(vision: VisionFile, image: ImageSpec) -> str:
    """What must be equal for embeds to be the same: the tower's and projector's files, and how pictures are
    prepared for them. The decoder has no part in it.
    """
    facts = (vision.sha256, vision.data.sha256, image)
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()


def write_embeds(
    path: Path,
    embeds: ImageEmbeds,
    *,
    bundle: Bundle,
    precision: VisionPrecision,
    pixels_sha256: str,
    size: tuple[int, int] | None = None,
    max_tiles: int | None = None,
) -> None:
    """Write ``embeds``, which the tower of ``bundle`` made in ``precision``, to ``path``.

    ``size`` and ``max_tiles`` tell how the picture was cut up, if it was.

    Raises:
        ImageError: it cannot be written.
        PromptError: the bundle has no vision tower.
    """
    vision, image = bundle.tower()
    metadata = Metadata(
        model=model_identity(vision.files[precision], image),
        precision=precision,
        pixels_sha256=pixels_sha256,
        data_sha256=embeds.sha256,
        width="" if size is None else str(size[0]),
        height="" if size is None else str(size[1]),
        max_tiles="" if size is None or max_tiles is None else str(max_tiles),
    )
    arrays = {"image_embeds": embeds.embeds, "patch_attention": embeds.patch_attention}
    contiguous = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    content = safetensors.numpy.save(contiguous, msgspec.to_builtins(metadata))
    try:
        write_atomically(path, [content])
    except OSError as error:
        raise ImageError(f"{path} cannot be written ({error.strerror}): choose another folder.") from error


def read_embeds(path: Path, bundle: Bundle) -> tuple[ImageEmbeds, Metadata]:
    """The embeds in the file ``path``, and what they belong to, all checked.

    Raises:
        ImageError: missing, damaged, or made with another tower than the bundle's.
        PromptError: the bundle has no vision tower.
    """
    return check_embeds(_read_file(path, _most_bytes(bundle)), bundle, str(path))


def check_embeds(content: bytes, bundle: Bundle, path: str) -> tuple[ImageEmbeds, Metadata]:
    """The embeds in the bytes of a file, which errors call ``path``; errors as read_embeds."""
    vision, image = bundle.tower()
    if len(content) > _most_bytes(bundle):
        raise _damaged(path, "it is longer than embeds of this model are")
    metadata = _read_metadata(path, content)
    made_by = vision.files.get(metadata.precision)
    if made_by is None or metadata.model != model_identity(made_by, image):
        raise ImageError(
            f"{path} was made with another model's vision tower: encode the picture with the bundle that is "
            "to read it."
        )
    try:
        arrays = safetensors.numpy.load(content)
    except (SafetensorError, LookupError, ValueError) as error:  # the last two: types and shapes NumPy lacks
        raise _damaged(path, "its header does not describe its arrays") from error
    if {name: array.dtype for name, array in arrays.items()} != {
        "image_embeds": np.float32,
        "patch_attention": np.float32,
    }:
        raise _damaged(path, "it has other arrays")
    blocks = _blocks(path, metadata, image)
    embeds = ImageEmbeds(arrays["image_embeds"], arrays["patch_attention"], blocks)
    n_rows = n_tokens(blocks) if blocks else image.n_image_tokens
    # [CLS] belongs to no patch, and the attention of older bundles is not known.
    with_attention = [sum(block.n_patches for block in blocks)] if blocks else [n_rows, n_rows - 1]
    if embeds.embeds.shape != (n_rows, image.n_embd) or embeds.patch_attention.shape not in [
        (n_patches,) for n_patches in (*with_attention, 0)
    ]:
        raise _damaged(path, "its arrays do not have this model's shapes")
    if embeds.sha256 != metadata.data_sha256:
        raise _damaged(path, "its hash is wrong")
    if not (np.isfinite(embeds.embeds).all() and np.isfinite(embeds.patch_attention).all()):
        raise _damaged(path, "it has numbers that are not finite")
    return embeds, metadata


def _most_bytes(bundle: Bundle) -> int:
    """Of a file of embeds of this model."""
    _, image = bundle.tower()
    _, most_tokens = tiling_of(image).most()
    return MAX_HEADER_BYTES + 4 * most_tokens * (image.n_embd + 1)


def _blocks(path: str, metadata: Metadata, image: ImageSpec) -> tuple[Block, ...]:
    """What the rows are, of a model that cuts pictures up."""
    if image.tiles is None:
        return ()
    if metadata.size is None:
        raise _damaged(path, "it does not say how large its picture is")
    return tiling_of(image, max_tiles=metadata.most_tiles).blocks(metadata.size)


def _read_file(path: Path, most_bytes: int) -> bytes:
    """The whole file, or one byte more than ``most_bytes``, if it has as many.

    Not mapped into memory: a file that is cut short meanwhile would end the process.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
            raise ImageError(f"{path} is not a file: give what `acestep-gguf encode` wrote.")
        with path.open("rb") as file:
            return file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(
            f"{path} cannot be read ({reason}): give what `acestep-gguf encode` wrote."
        ) from error


def _read_metadata(path: str, content: bytes) -> Metadata:
    """Metadata in the header: JSON, after 8 bytes that tell its length."""
    n_header = int.from_bytes(content[:8], "little")
    if len(content) < 8 or n_header > min(MAX_HEADER_BYTES, len(content) - 8):
        raise _damaged(path, f"its header claims {n_header} bytes, the file has {len(content)}")
    try:
        return msgspec.json.decode(content[8 : 8 + n_header], type=Header).metadata
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, "its metadata is that of something else") from error


def _damaged(path: str, why: str) -> ImageError:
    return ImageError(f"{path} is not a file of image embeds, or damaged ({why}): encode the picture again.")
