"""What an earlier conversion left in the output folder, and whether it may be added to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from acestep_gguf.bundle import (
    Bundle,
    DecoderFile,
    FileRecord,
    ImageSpec,
    PromptSpec,
    Source,
    Vision,
    check_file,
)
from acestep_gguf.errors import BundleError
from acestep_gguf.names import BUNDLE_FILE, FTYPES, Ftype, decoder_file_name, vision_file_name
from acestep_gguf.quantize.staging import PARTIAL_SUFFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFolder:
    """The parts of ``bundle`` that are whole; files that are missing or of a wrong size are made again."""

    bundle: Bundle | None = None
    decoders: dict[Ftype, DecoderFile] = field(default_factory=dict)
    vision: Vision | None = None

    @classmethod
    def read(cls, folder: Path, *, name: str, size_label: str) -> Self:
        """Look at ``folder``, where a model of this name is to be written.

        Raises:
            BundleError: it is neither empty nor a bundle, or a damaged one.
        """
        if not folder.exists():
            return cls()
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a folder: give another output folder.")
        if not (folder / BUNDLE_FILE).exists():
            _check_no_foreign_files(folder, name, size_label)
            return cls()
        bundle = Bundle.read(folder)
        decoders = {
            ftype: record for ftype, record in bundle.decoders.files.items() if _is_sound(folder, record)
        }
        vision_records = [record for file in bundle.vision.files.values() for record in (file, file.data)]
        is_vision_sound = all(_is_sound(folder, record) for record in vision_records)
        return cls(bundle=bundle, decoders=decoders, vision=bundle.vision if is_vision_sound else None)

    def check_same_model(self, folder: Path, source: Source, image: ImageSpec, prompt: PromptSpec) -> None:
        """Refuse to mix models in one bundle.

        Raises:
            BundleError: the bundle was made from something else.
        """
        if self.bundle is None:
            return
        if self.bundle.image.size != image.size:
            raise BundleError(
                f"{folder} was made for pictures of {self.bundle.image.size.height} pixels, not "
                f"{image.size.height}: give another output folder."
            )
        if (self.bundle.source, self.bundle.image, self.bundle.prompt) != (source, image, prompt):
            raise BundleError(f"{folder} was made from another checkpoint: give another output folder.")


def _is_sound(folder: Path, record: FileRecord) -> bool:
    try:
        check_file(folder, record)
    except BundleError:
        return False
    return True


def _check_no_foreign_files(folder: Path, name: str, size_label: str) -> None:
    """A conversion that was killed may have left files, but only files that this one writes again."""
    vision = vision_file_name("float32")
    own = {vision, f"{vision}.data", *(decoder_file_name(name, size_label, ftype) for ftype in FTYPES)}
    for path in folder.iterdir():
        if path.name not in own and not path.name.endswith(PARTIAL_SUFFIX):
            raise BundleError(
                f"{folder} holds {path.name} and is no bundle: give a new or empty output folder."
            )
