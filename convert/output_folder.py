"""What an earlier conversion left in the output folder, and whether it may be added to."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.bundle.names import (
    BUNDLE_FILE,
    FTYPES,
    LLAMA_FTYPE,
    MMPROJ_FTYPES,
    PREFILL_FILE,
    VISION_PRECISIONS,
    Ftype,
    MmprojFtype,
    VisionPrecision,
    decoder_file_name,
    mmproj_file_name,
    vision_file_name,
)
from acestep_gguf.bundle.schema import (
    Bundle,
    DecoderFile,
    FileRecord,
    PrefillFile,
    PromptSpec,
    Source,
    VisionFile,
    check_file,
)
from acestep_gguf.errors import BundleError, UsageError
from acestep_gguf.storage.unfinished import leftovers

# File names have 255 bytes: this leaves room for size, ftype, and the suffix of a partial file.
MAX_NAME_LENGTH: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFolder:
    """The parts of ``bundle`` that are whole; files that are missing or of a wrong size are made again."""

    path: Path
    bundle: Bundle | None = None
    decoders: dict[Ftype, DecoderFile] = field(default_factory=dict)
    towers: dict[VisionPrecision, VisionFile] = field(default_factory=dict)
    mmproj: dict[MmprojFtype, FileRecord] = field(default_factory=dict)
    quality: FileRecord | None = None
    prefill: PrefillFile | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Look at the folder ``path``, which need not exist.

        Raises:
            BundleError: it is not a folder, or a damaged bundle.
            UsageError: a folder cannot have this name.
        """
        try:
            if path.exists() and not path.is_dir():
                raise BundleError(f"{path} is not a folder: give another output folder.")
            if not (path / BUNDLE_FILE).exists():
                return cls(path=path)
        except OSError as error:
            raise UsageError(
                f"the output folder cannot be used ({error.strerror}): give another one."
            ) from error
        bundle = Bundle.read(path)
        files = bundle.decoders.files
        sound = {ftype: file for ftype, file in files.items() if _is_sound(path, file)}
        decoders = {ftype: sound[ftype] for ftype in FTYPES if ftype in sound}
        mmproj = {ftype: file for ftype, file in bundle.mmproj.items() if _is_sound(path, file)}
        towers = {
            precision: file
            for precision, file in (bundle.vision.files if bundle.vision else {}).items()
            if _is_sound(path, file) and _is_sound(path, file.data)
        }
        quality = bundle.quality if bundle.quality and _is_sound(path, bundle.quality) else None
        prefill = bundle.prefill
        if prefill and not (_is_sound(path, prefill) and _is_sound(path, prefill.data)):
            prefill = None
        return cls(
            path=path,
            bundle=bundle,
            decoders=decoders,
            towers=towers,
            mmproj=mmproj,
            quality=quality,
            prefill=prefill,
        )

    @property
    def ftypes(self) -> tuple[Ftype, ...]:
        """The decoders that the bundle had before, be their files whole or not."""
        files = self.bundle.decoders.files if self.bundle else {}
        return tuple(ftype for ftype in FTYPES if ftype in files)

    @property
    def precisions(self) -> tuple[VisionPrecision, ...]:
        """The towers that the bundle had, whole or not."""
        return tuple(self.bundle.vision.files) if self.bundle and self.bundle.vision else ()

    @property
    def mmproj_ftypes(self) -> tuple[MmprojFtype, ...]:
        """The mmproj files that the bundle had, whole or not."""
        return tuple(self.bundle.mmproj) if self.bundle else ()

    def model_name(self, asked: str | None, default: str) -> str:
        """The name under which a model is added: a bundle keeps its own.

        Raises:
            BundleError: another name is asked for.
            UsageError: the name is too long, or cannot be printed.
        """
        if self.bundle is None:
            return _checked_name(asked or default)
        if asked not in (None, self.bundle.name):
            raise BundleError(
                f"{self.path} is named {self.bundle.name}: leave the name out, or give a new folder."
            )
        return self.bundle.name

    def check_fits(
        self, *, name: str, size_label: str, source: Source, image: ImageSpec | None, prompt: PromptSpec
    ) -> None:
        """Refuse to mix models in one bundle, and bundles with other files.

        Raises:
            BundleError: the folder was made from something else, or it is not empty and yet not a bundle.
        """
        if self.bundle is None:
            self.check_no_foreign_files(name, size_label)
            return
        if self.bundle.image and image and self.bundle.image.size != image.size:
            raise BundleError(
                f"{self.path} was made for pictures of {self.bundle.image.size.height} pixels, not "
                f"{image.size.height}: give another output folder."
            )
        quickly_known = replace(self.bundle.source, tensors_sha256=None)
        if (quickly_known, self.bundle.image, self.bundle.prompt) != (source, image, prompt):
            raise BundleError(f"{self.path} was made from another checkpoint: give another output folder.")

    def check_can_be_added_to(self) -> None:
        """Refuse to add to a bundle that does not say which training it was made from.

        Raises:
            BundleError: it was made before bundles did.
        """
        if self.bundle and not self.bundle.source.tensors_sha256:
            raise BundleError(
                f"{self.path} was made by an older version, which did not look at every weight of the "
                "checkpoint: it can be used, but not added to; give another output folder."
            )

    def check_same_weights(self, tensors_sha256: str) -> None:
        """Refuse to add to a bundle what was made from another training of the same model.

        Raises:
            BundleError: its checkpoint had other weights.
        """
        if self.bundle and self.bundle.source.tensors_sha256 != tensors_sha256:
            raise BundleError(
                f"{self.path} was made from another training of this checkpoint: give another output folder."
            )

    def check_no_foreign_files(self, name: str, size_label: str) -> None:
        """A conversion that was killed may have left files, but only files that this one writes again.

        Raises:
            BundleError: the folder holds something else.
        """
        own = {decoder_file_name(name, size_label, ftype) for ftype in LLAMA_FTYPE}
        for precision in VISION_PRECISIONS:
            graph = vision_file_name(precision)
            own |= {graph, f"{graph}.data"}
        own |= {PREFILL_FILE, f"{PREFILL_FILE}.data"}
        own |= {mmproj_file_name(name, ftype) for ftype in MMPROJ_FTYPES}
        left = leftovers(self.path)
        for path in self.path.iterdir() if self.path.exists() else ():
            if path.name not in own and path not in left:
                raise BundleError(
                    f"{self.path} is not a bundle, but holds {path.name}: give a new or empty folder."
                )


def _checked_name(name: str) -> str:
    # What is not UTF-8 in a file's name or an argument comes as half surrogate pairs: no printable text.
    if len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise UsageError(
            f"name {name[:30]!r} is not a printable text of at most {MAX_NAME_LENGTH} characters: "
            "give another name."
        )
    return name


def _is_sound(folder: Path, record: FileRecord) -> bool:
    try:
        check_file(folder, record)
    except BundleError:
        return False
    return True
