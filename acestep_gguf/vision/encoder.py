"""A picture becomes image embeds. The tower is loaded for the first one whose embeds are not known yet."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from acestep_gguf.bundle.image_spec import AnySize, Quarters
from acestep_gguf.bundle.names import BUNDLE_FILE, VisionPrecision
from acestep_gguf.bundle.schema import Bundle, check_file
from acestep_gguf.cpus import cpu_name
from acestep_gguf.errors import ImageError, UsageError
from acestep_gguf.options import TowerProvider
from acestep_gguf.ort_builds import ort_version
from acestep_gguf.progress import Progress, Report, report_nothing
from acestep_gguf.prompt.segments import ImageInput, image_input
from acestep_gguf.sizes import show_size
from acestep_gguf.storage.disk_cache import DiskCache
from acestep_gguf.storage.file_identity import file_identity
from acestep_gguf.vision.blocks import Block, n_tokens, rows_of_blocks
from acestep_gguf.vision.embeds import ImageEmbeds
from acestep_gguf.vision.embeds_file import EmbedsSource, model_identity
from acestep_gguf.vision.image import as_seen, crops_of, open_rgb, opening_bytes
from acestep_gguf.vision.image_file import ImageSource, picture_name, picture_state
from acestep_gguf.vision.int8_check import vision_precision
from acestep_gguf.vision.tiling import Tiling, cuts_only_one, tiling_of

if TYPE_CHECKING:
    from acestep_gguf.vision.tower import VisionTower

FloatArray = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

Key = TypeVar("Key")
Value = TypeVar("Value")

# Why image_tokens is refused, by the kind of tiles.
NO_FEWER_TOKENS: Final[Mapping[type, str]] = {
    AnySize: (
        "chooses by the attention of all patches to each other, which takes gigabytes for pictures of any "
        "size: leave it out, and give smaller pictures."
    ),
    Quarters: (
        "chooses among patches, and the tokens of this model's pictures are none: leave it out, or see the "
        "whole picture only, max_tiles=1."
    ),
}
REMEMBERED: Final = 8
SHA256_BYTES: Final = 32


@dataclass(frozen=True, eq=False, slots=True)
class Picture:
    """A picture that was opened for one vision tower, but not yet encoded.

    Args:
        source: what it was opened from.
        input: what it is to the decoder.
        sha256: in hexadecimal, of all that its embeds come from, or of the embeds that were given.
        tower: what encodes it, or made its embeds: ``ImageEncoder.tower_identity`` or ``model_identity``.
        n_pictures: how many the prompt has that it was opened for, as far as that matters to the model.
        size: its width and height.
        crops: what the tower sees of it, uint8 [H, W, 3] each; None if the embeds were given.
        embeds: as given, from a file.
    """

    source: ImageSource | EmbedsSource
    input: ImageInput
    sha256: str
    tower: str
    n_pictures: int
    size: tuple[int, int]
    crops: Sequence[UInt8Array] | None = None
    embeds: ImageEmbeds | None = None


# What may stand for an image in a message.
PictureSource = ImageSource | EmbedsSource | Picture


class ImageEncoder:
    """The vision tower of a bundle, what the last pictures became, and the embeds of more of them on disk.

    Args:
        folder: of the bundle.
        bundle: what is in it.
        n_threads: of the tower.
        precision: of the tower; by default the bundle's default.
        provider: what of onnxruntime runs the tower.
        image_tokens: tokens of a picture at most (see token_selection.py); None for all.
        max_tiles: into which a picture is cut; None for as many as the model was made for.
        cache: where embeds are kept between processes.
        opening_limit: memory in bytes that opening a picture may take; None for any.

    Raises:
        UsageError: ``image_tokens`` of a bundle whose crops have any size.
    """

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        *,
        n_threads: int,
        precision: VisionPrecision | None = None,
        provider: TowerProvider = "cpu",
        image_tokens: int | None = None,
        max_tiles: int | None = None,
        cache: DiskCache | None = None,
        opening_limit: int | None = None,
    ) -> None:
        why_none = NO_FEWER_TOKENS.get(type(bundle.image.tiles)) if bundle.image else None
        if image_tokens is not None and why_none is not None:
            raise UsageError(f"image_tokens {why_none}", settings=["image_tokens"])
        self._folder = folder
        self._bundle = bundle
        self._n_threads = n_threads
        self._wanted = precision
        self._provider = provider
        self._precision: VisionPrecision | None = None
        self._image_tokens = image_tokens
        self._max_tiles = max_tiles
        self._cache = cache
        self._opening_limit = opening_limit
        self._tower: VisionTower | None = None
        self._loading: Future[VisionTower] | None = None
        self._embeds: OrderedDict[str, ImageEmbeds] = OrderedDict()  # by Picture.sha256
        # By picture_state, and whether it is alone.
        self._opened: OrderedDict[tuple[int, ...], Picture] = OrderedDict()

    @property
    def least_tokens(self) -> int:
        """Tokens that every picture has at least; 0 if the bundle has no tower."""
        n_tokens = self._bundle.image.n_image_tokens if self._bundle.image else 0
        return n_tokens if self._image_tokens is None else min(self._image_tokens, n_tokens)

    @property
    def precision(self) -> VisionPrecision:
        """Precision of the tower that makes the embeds; see ``vision_precision`` for errors."""
        if self._precision is None:
            self._precision = vision_precision(
                self._folder, self._bundle, self._wanted, n_threads=self._n_threads
            )
        return self._precision

    def load(self) -> "VisionTower":
        """The tower, loaded if it is not yet.

        Raises:
            PromptError: the bundle has no tower.
            BundleError: the tower's files are missing or damaged.
        """
        if self._tower is None:
            loading, self._loading = self._loading, None
            self._tower = self._new_tower() if loading is None else loading.result()
        return self._tower

    def load_beside(self, sources: Sequence[PictureSource]) -> None:
        """Begin to load the tower in another thread, if one of these needs it; ``load`` waits for it.

        Errors are those of ``prepare``.
        """
        # All are opened before anything is loaded: then their memory is free again.
        pictures = self.prepare_all(sources)
        if any(self.recall(picture) is None for picture in pictures):
            thread = ThreadPoolExecutor(1)
            self._loading = thread.submit(self._new_tower)
            thread.shutdown(wait=False)

    def _new_tower(self) -> "VisionTower":
        from acestep_gguf.vision.tower import VisionTower  # noqa: PLC0415 (many answers need no onnxruntime)

        return VisionTower(
            self._folder, self._bundle, self.precision, n_threads=self._n_threads, provider=self._provider
        )

    def encode_ahead(self, sources: Sequence[PictureSource], report: Report = report_nothing) -> None:
        """Encode pictures, at most REMEMBERED, and free the tower; errors are those of prepare and load."""
        for number, picture in enumerate(self.prepare_all(sources)):
            report(Progress("encoding", number, len(sources)))
            self.rows(picture)
        self._tower = None

    def prepare_all(self, sources: Sequence[PictureSource]) -> list[Picture]:
        """All pictures of a prompt; errors are those of ``prepare``."""
        return [self.prepare(source, n_pictures=len(sources)) for source in sources]

    def prepare(self, source: PictureSource, *, n_pictures: int = 1) -> Picture:
        """Open a picture of a prompt with ``n_pictures``, unless it is already, and say which one it is.

        That needs no tower. A file that was opened lately, and has not changed, is not decoded again.

        Raises:
            PromptError: the bundle has no tower.
            ImageError: missing, of another format, damaged or too large; or it was prepared, or its
                embeds were made, for another tower.
        """
        _, image = self._bundle.tower()
        n_pictures = n_pictures if cuts_only_one(image) else 1
        if isinstance(source, Picture):
            self._check_was_prepared_here(source)
            if source.n_pictures == n_pictures or (source.n_pictures > 1 and n_pictures > 1):
                return source
            return self.prepare(source.source, n_pictures=n_pictures)
        if isinstance(source, EmbedsSource):
            return self._given(source, n_pictures)
        state = picture_state(Path(source)) if isinstance(source, str | os.PathLike) else None
        if state is None:
            return self._open(source, n_pictures)
        key = (*state, n_pictures == 1)
        picture = self._opened.get(key) or self._open(source, n_pictures)
        _remember(self._opened, key, picture)
        return picture

    def recall(self, picture: Picture) -> ImageEmbeds | None:
        """Embeds of a picture that were given, or are remembered or on disk."""
        if picture.embeds is not None:
            return picture.embeds
        embeds = self._embeds.get(picture.sha256)
        if embeds is None and self._cache is not None:
            embeds = self._read(picture)
        if embeds is not None:
            _remember(self._embeds, picture.sha256, embeds)
        return embeds

    def encode(self, picture: Picture) -> ImageEmbeds:
        """Embeds of a picture, from the tower if nobody has them.

        Raises:
            BundleError: the tower's files are missing or damaged.
            DecodeError: onnxruntime failed.
        """
        embeds = self.recall(picture)
        if embeds is None:
            embeds = self._encode(picture)
            _remember(self._embeds, picture.sha256, embeds)
            if self._cache is not None:
                self._cache.put(_entry(picture), embeds.embeds, embeds.patch_attention)
        return embeds

    def rows(self, picture: Picture) -> FloatArray:
        """What the decoder reads of a picture, float32 [n_tokens, n_embd]; errors are those of ``encode``."""
        return self.encode(picture).kept(self._image_tokens)

    def stop(self) -> None:
        """Let the picture that is being encoded fail with a DecodeError; any thread may."""
        if (tower := self._tower) is not None:
            tower.stop()

    def close(self) -> None:
        """Free the tower and forget all pictures."""
        self._tower = self._loading = None
        self._embeds.clear()
        self._opened.clear()

    def as_seen(self, picture: Picture) -> Image.Image:
        """What the model sees of a picture that was opened, RGB; its tiles beside one another."""
        if picture.crops is None:
            raise ImageError("of image embeds nobody knows the picture.")
        return as_seen(picture.crops, picture.size, self._tiling(picture.n_pictures))

    def _encode(self, picture: Picture) -> ImageEmbeds:
        assert picture.crops is not None  # noqa: S101 (embeds that are given are recalled)
        return self.load().encode_picture(picture.crops, picture.size, self._tiling(picture.n_pictures))

    def _tiling(self, n_pictures: int) -> Tiling:
        _, image = self._bundle.tower()
        return tiling_of(image, max_tiles=self._max_tiles, n_pictures=n_pictures)

    @cached_property
    def tower_identity(self) -> str:
        """SHA-256, in hexadecimal, of what decides, beside the pixels, what the embeds of a picture are."""
        file = self._bundle.vision_file(self.precision)
        facts: Any = (
            "embeds 2",
            hashlib.sha256((self._folder / BUNDLE_FILE).read_bytes()).hexdigest(),
            [file_identity(check_file(self._folder, record)) for record in (file, file.data)],
            ort_version(),
            self._provider,
            version("acestep-gguf"),
            cpu_name(),
            self._n_threads,
        )
        return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()

    def _open(self, source: ImageSource, n_pictures: int) -> Picture:
        _, image = self._bundle.tower()
        tiling, limit = self._tiling(n_pictures), self._opening_limit
        if limit is not None and (needed := opening_bytes(source, image, tiling)) > limit:
            raise ImageError(
                f"{picture_name(source)} takes {show_size(needed)} of memory to open, and "
                f"{show_size(limit)} are left: give a smaller picture."
            )
        upright = open_rgb(source, image)
        crops, blocks = crops_of(upright, tiling), tiling.blocks(upright.size)
        identity = hashlib.sha256(bytes.fromhex(self.tower_identity))
        identity.update(msgspec.json.encode((blocks, [crop.shape for crop in crops])))
        for crop in crops:
            identity.update(np.ascontiguousarray(crop).data)
        sha256 = identity.hexdigest()
        return Picture(
            source,
            self._input(sha256, blocks, tiling.marks(upright.size)),
            sha256,
            tower=self.tower_identity,
            n_pictures=n_pictures,
            size=upright.size,
            crops=crops,
        )

    def _given(self, source: EmbedsSource, n_pictures: int) -> Picture:
        """What a file of image embeds is; it was made of a picture that is alone in its prompt."""
        _, image = self._bundle.tower()
        embeds, metadata = source.checked(self._bundle)
        if n_pictures > 1:
            raise ImageError(
                f"{source.path} is of a picture that is alone, and this model sees several in another way: "
                "give the pictures themselves."
            )
        tiling, size = tiling_of(image, max_tiles=metadata.most_tiles), metadata.size or (1, 1)
        blocks, marks = embeds.blocks or (Block(1, len(embeds.embeds)),), tiling.marks(size)
        # Files of the same arrays may say another size, and so another layout.
        sha256 = hashlib.sha256(msgspec.json.encode([embeds.sha256, blocks, marks])).hexdigest()
        return Picture(
            source,
            self._input(sha256, blocks, marks),
            sha256,
            tower=metadata.model,
            n_pictures=1,
            size=metadata.size or (0, 0),
            embeds=embeds,
        )

    def _check_was_prepared_here(self, picture: Picture) -> None:
        vision, image = self._bundle.tower()
        if picture.embeds is None:
            is_ours = picture.tower == self.tower_identity
        else:
            is_ours = any(picture.tower == model_identity(file, image) for file in vision.files.values())
        if not is_ours or picture.input.key[SHA256_BYTES:] != self._settings_key:
            raise ImageError(
                "this picture was prepared by another model, or one with other settings: give the picture "
                "itself, or prepare it with the model that answers."
            )

    def _input(self, sha256: str, blocks: Sequence[Block], marks: Sequence[tuple[int, ...]]) -> ImageInput:
        key = bytes.fromhex(sha256) + self._settings_key
        return image_input(key, rows_of_blocks(blocks, self._image_tokens), marks)

    @cached_property
    def _settings_key(self) -> bytes:
        """Another one for other settings that a picture's tokens follow from."""
        settings = (self._image_tokens or 0, self._max_tiles or 0)
        return b"".join(number.to_bytes(4, "little") for number in settings)

    def _read(self, picture: Picture) -> ImageEmbeds | None:
        """Embeds on disk. Their hash was right, but it can be right for anything that somebody put there."""
        _, image = self._bundle.tower()
        assert self._cache is not None  # noqa: S101
        data = self._cache.get(_entry(picture))
        blocks = self._tiling(picture.n_pictures).blocks(picture.size)
        n_rows = n_tokens(blocks)
        n_floats = n_rows * image.n_embd
        if data is None or not 4 * n_floats <= len(data) <= 4 * (n_floats + n_rows):
            return None
        numbers = data[: len(data) // 4 * 4].view(np.float32)
        if not np.isfinite(numbers).all():
            return None
        embeds, attention = numbers[:n_floats].reshape(n_rows, image.n_embd), numbers[n_floats:]
        if image.tiles is None:
            return ImageEmbeds(embeds, attention)
        if len(attention) not in (0, sum(block.n_patches for block in blocks)):
            return None
        return ImageEmbeds(embeds, attention, blocks)


def _entry(picture: Picture) -> str:
    return f"embeds-{picture.sha256}"


def _remember(memory: OrderedDict[Key, Value], key: Key, value: Value) -> None:
    """Put ``value`` at the end of ``memory``, and drop what is at its beginning; several threads may."""
    memory.pop(key, None)
    memory[key] = value
    while len(memory) > REMEMBERED:
        memory.popitem(last=False)
