"""Files of image embeds: what one machine's vision tower makes of a picture, for another machine's decoder.

A safetensors file (https://huggingface.co/docs/safetensors: 8 bytes of header length, a JSON header, then the
tensors' bytes without gaps) with the two arrays of ``ImageEmbeds``, and in its metadata what they belong to.
It comes from outside, so everything in it is checked before it is used.
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import numpy as np

from acestep_gguf.bundle.names import VisionPrecision
from acestep_gguf.bundle.schema import Bundle, ImageSpec, VisionFile
from acestep_gguf.errors import ImageError
from acestep_gguf.storage.atomic_file import write_atomically
from acestep_gguf.vision.embeds import FloatArray, ImageEmbeds

SUFFIX: Final = ".safetensors"
FORMAT: Final = "acestep-gguf image embeds 1"
MAX_HEADER_BYTES: Final = 2**16
ALIGNMENT: Final = 8

Hash = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**40)]


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the header's tensors; ``data_offsets`` count from the end of the header."""

    dtype: Literal["F32"]
    shape: tuple[Count, ...]
    data_offsets: tuple[Count, Count]


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """What the embeds belong to.

    ``model`` is ``model_identity``, ``precision`` the tower's; ``pixels_sha256`` is over the picture's
    ``pixel_values``, ``data_sha256`` over all bytes after the header.
    """

    format: Literal["acestep-gguf image embeds 1"] = FORMAT
    model: Hash
    precision: VisionPrecision
    pixels_sha256: Hash
    data_sha256: Hash


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON header."""

    metadata: Metadata = msgspec.field(name="__metadata__")
    image_embeds: Tensor
    patch_attention: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both of them."""
        return self.image_embeds, self.patch_attention


@dataclass(frozen=True, slots=True)
class EmbedsFile:
    """A file that ``acestep-gguf encode`` wrote, given in the place of a picture."""

    path: str | os.PathLike[str]

    def read(self, bundle: Bundle) -> ImageEmbeds:
        """The embeds, see ``read_embeds``."""
        return read_embeds(Path(self.path), bundle)[0]


def model_identity(vision: VisionFile, image: ImageSpec) -> str:
    """What must be equal for embeds to be the same: the tower's and projector's files, and how pictures are
    prepared for them. The decoder has no part in it.
    """
    facts = (vision.sha256, vision.data.sha256, image)
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()


def write_embeds(
    path: Path, embeds: ImageEmbeds, *, bundle: Bundle, precision: VisionPrecision, pixels_sha256: str
) -> None:
    """Write ``embeds``, which the tower of ``bundle`` made in ``precision``, to ``path``.

    Raises:
        ImageError: it cannot be written.
        PromptError: the bundle has no vision tower.
    """
    vision, image = bundle.tower()
    arrays = [np.ascontiguousarray(array, "<f4") for array in (embeds.embeds, embeds.patch_attention)]
    data_hash = hashlib.sha256()
    tensors = []
    offset = 0
    for array in arrays:
        data_hash.update(array.data)
        tensors.append(Tensor("F32", array.shape, (offset, offset + array.nbytes)))
        offset += array.nbytes
    metadata = Metadata(
        model=model_identity(vision.files[precision], image),
        precision=precision,
        pixels_sha256=pixels_sha256,
        data_sha256=data_hash.hexdigest(),
    )
    header = msgspec.json.encode(Header(metadata, *tensors))
    header += b" " * (-len(header) % ALIGNMENT)
    try:
        write_atomically(path, [len(header).to_bytes(8, "little"), header, *(array.data for array in arrays)])
    except OSError as error:
        raise ImageError(f"{path} cannot be written ({error.strerror}): choose another folder.") from error


def read_embeds(path: Path, bundle: Bundle) -> tuple[ImageEmbeds, Metadata]:
    """The embeds in the file ``path``, and what they belong to, all checked.

    Raises:
        ImageError: missing, damaged, or made with another tower than the bundle's.
        PromptError: the bundle has no vision tower.
    """
    vision, image = bundle.tower()
    n_embeds_bytes = 4 * image.n_image_tokens * image.n_embd
    header, data = _read_file(path, MAX_HEADER_BYTES + 2 * n_embeds_bytes)
    metadata = header.metadata
    made_by = vision.files.get(metadata.precision)
    if made_by is None or metadata.model != model_identity(made_by, image):
        raise ImageError(
            f"{path} was made with another model's vision tower: encode the picture with this bundle."
        )
    if hashlib.sha256(data).hexdigest() != metadata.data_sha256:
        raise _damaged(path, "its hash is wrong")
    n_tokens = image.n_image_tokens
    if (
        header.image_embeds.shape != (n_tokens, image.n_embd)
        # [CLS] belongs to no patch, and the attention of older bundles is not known.
        or header.patch_attention.shape not in ((n_tokens,), (n_tokens - 1,), (0,))
    ):
        raise _damaged(path, "its arrays are not of this model's shapes")
    (start, middle), (also_middle, end) = sorted(tensor.data_offsets for tensor in header.tensors)
    if (start, middle, end) != (0, also_middle, len(data)):
        raise _damaged(path, "its arrays do not lie where they should")
    embeds = ImageEmbeds(_array(path, header.image_embeds, data), _array(path, header.patch_attention, data))
    if not (np.isfinite(embeds.embeds).all() and np.isfinite(embeds.patch_attention).all()):
        raise _damaged(path, "it has numbers that are not finite")
    return embeds, metadata


def _read_file(path: Path, most_bytes: int) -> tuple[Header, memoryview]:
    """Header and data of the file, which is read whole unless it has more than ``most_bytes``."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
            raise ImageError(f"{path} is not a file: give what `acestep-gguf encode` wrote.")
        with path.open("rb") as file:
            content = memoryview(file.read(most_bytes + 1))
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(
            f"{path} cannot be read ({reason}): give what `acestep-gguf encode` wrote."
        ) from error
    if len(content) > most_bytes:
        raise _damaged(path, "it is longer than embeds of this model are")
    n_header = int.from_bytes(content[:8], "little")
    if len(content) < 8 or n_header > min(MAX_HEADER_BYTES, len(content) - 8):
        raise _damaged(path, f"its header claims {n_header} bytes, the file has {len(content)}")
    try:
        header = msgspec.json.decode(content[8 : 8 + n_header], type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    return header, content[8 + n_header :]


def _array(path: Path, tensor: Tensor, data: memoryview) -> FloatArray:
    start, end = tensor.data_offsets
    if end - start != 4 * prod(tensor.shape):
        raise _damaged(path, "its arrays are not as long as their shapes")
    array: FloatArray = np.frombuffer(data[start:end], "<f4").reshape(tensor.shape).astype(np.float32)
    return array


def _damaged(path: Path, why: str) -> ImageError:
    return ImageError(f"{path} is no sound file of image embeds ({why}): encode the picture again.")
