"""The image embeds of some pictures of a benchmark on disk, so that each is encoded once for all decoders."""

import hashlib
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from acestep_gguf.bundle.names import vision_precision_from
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.cpus import usable_cpus
from acestep_gguf.errors import AceStepError, BenchmarkError, ImageError
from acestep_gguf.score.item import PictureRef
from acestep_gguf.storage.atomic_file import partial_name
from acestep_gguf.vision.embeds_file import SUFFIX, EmbedsFile, model_identity
from acestep_gguf.vision.encode_pictures import write_encoded
from acestep_gguf.vision.encoder import ImageEncoder
from acestep_gguf.vision.tiling import tiling_of

F32: Final = 4
NAME: Final = re.compile("[0-9a-f]{64}")


class BlockEmbeds:
    """A folder of image embeds, of one block of pictures at a time; nobody else may use it meanwhile.

    Args:
        folder: made when the first picture is encoded.
        bundle: folder of the bundle whose tower encodes.
        vision: precision of the tower; by default the bundle's default.
        n_threads: of the tower; by default one for each CPU.

    Raises:
        PromptError: the bundle has no vision tower.
        BundleError: it has no tower of this precision.
    """

    def __init__(
        self, folder: Path, bundle: Path, *, vision: str | None = None, n_threads: int | None = None
    ) -> None:
        self._folder = folder
        self._bundle_folder = bundle
        self._bundle = Bundle.read(bundle)
        _, self._image = self._bundle.tower()
        self._precision = None if vision is None else vision_precision_from(vision)
        file = self._bundle.vision_file(self._precision)
        self._model = model_identity(file, self._image)
        self._n_threads = n_threads if n_threads is not None else usable_cpus()

    @property
    def bytes_per_picture(self) -> int:
        """At most."""
        _, most_tokens = tiling_of(self._image).most()
        return F32 * most_tokens * (self._image.n_embd + 1)

    def encode(self, pictures: Iterable[PictureRef]) -> dict[str, EmbedsFile | AceStepError]:
        """The embeds of each picture, by its key, or why it has none; what is there is not made again.

        Raises:
            BenchmarkError: the folder cannot be written.
            BundleError: the tower's files are missing or damaged.
            DecodeError: onnxruntime failed.
        """
        found: dict[str, EmbedsFile | AceStepError] = {}
        encoder = ImageEncoder(
            self._bundle_folder, self._bundle, n_threads=self._n_threads, precision=self._precision
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self._folder, error.strerror) from error
        for picture in pictures:
            file = EmbedsFile(self._path(picture.key))
            found[picture.key] = file
            try:
                file.read(self._bundle)
                continue  # a run before this one was stopped
            except ImageError:
                pass
            try:
                opened = encoder.prepare(picture.read())
            except ImageError as error:
                found[picture.key] = error
                continue
            try:
                write_encoded(Path(file.path), opened, encoder, self._bundle)
            except ImageError as error:
                raise _unwritable(self._folder, error) from error
        encoder.close()
        return found

    def forget(self) -> None:
        """Remove all embeds, and what a process left that was killed while it wrote some."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            if NAME.fullmatch(path.stem):
                path.unlink(missing_ok=True)
        for left in self._folder.glob(partial_name(f"*{SUFFIX}.*")):
            left.unlink(missing_ok=True)
        with suppress(OSError):  # not there, or something else is in it
            self._folder.rmdir()

    def _path(self, key: str) -> Path:
        """Another one for another tower: of two precisions, one may have been stopped."""
        name = hashlib.sha256(f"{self._model} {key}".encode(errors="surrogateescape")).hexdigest()
        return self._folder / f"{name}{SUFFIX}"


def _unwritable(folder: Path, why: object) -> BenchmarkError:
    return BenchmarkError(
        f"{folder} cannot be written ({why}): make room, or give another output; the same command goes on.",
        settings=["output"],
    )
