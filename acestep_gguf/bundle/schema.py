"""The bundle: a folder with bundle.json, one GGUF per decoder quantization, one ONNX file per precision.

The schema is documented in docs/bundle.md. bundle.json is written last, so a folder that has one is whole.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from acestep_gguf.bundle.image_spec import SIZES_OF_THEIR_OWN, ImageSpec, LongestEdgeTiles, control_ids
from acestep_gguf.bundle.names import (
    BUNDLE_FILE,
    FTYPES,
    VISION_PRECISIONS,
    DecoderFtype,
    MmprojFtype,
    VisionPrecision,
    ftype_from,
)
from acestep_gguf.errors import BundleError, PromptError
from acestep_gguf.storage.atomic_file import partial_name
from acestep_gguf.storage.unfinished import leftovers

SCHEMA_VERSION = 4
MAX_BUNDLE_JSON_BYTES = 16 * 2**20

SpacePrefix = Literal["never", "first", "always", "prepend"]

IMPORTED = "llama.cpp"
NO_TOWER = "this bundle has no vision tower: ask without pictures."


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of the bundle; ``file`` is a bare name, never a path."""

    file: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if self.file in ("", ".", "..") or any(c in self.file for c in "/\\:\0"):
            raise ValueError(f"{self.file!r} is not a bare file name")
        _check_printable("file", self.file)
        if self.bytes <= 0:
            raise ValueError(f"{self.file!r} claims {self.bytes} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderFile(FileRecord):
    """A GGUF file; ``bits_per_weight`` is the mean over all its tensors."""

    bits_per_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceEmbeds:
    """The direction of one image token of the reference picture (see int8_check.py) in float32.

    ``direction`` has the length 1; its elements are float16, little-endian.
    """

    token: int
    direction: bytes

    def __post_init__(self) -> None:
        if self.token < 0 or not self.direction or len(self.direction) % 2:
            raise ValueError("the reference embeds must be a token and float16 numbers")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionFile(FileRecord):
    """An ONNX file, its external data, and its fidelity: cosines of image embeds to float32's.

    ``cosine_to_float32`` is the mean over tokens of the calibration pictures, ``min_cosine_to_float32`` the
    least; the centred ones are without the mean token of each picture, and None in older bundles. Schema
    version 1 had no ``min_cosine_to_float32`` and no ``reference``; float32 needs none.
    """

    data: FileRecord
    cosine_to_float32: float
    min_cosine_to_float32: float | None = None
    centred_cosine_to_float32: float | None = None
    min_centred_cosine_to_float32: float | None = None
    reference: ReferenceEmbeds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillFile(FileRecord):
    """An ONNX file that computes one layer of the decoder, and ``data``: int8 weights of ``n_layers``."""

    data: FileRecord
    n_layers: int

    def __post_init__(self) -> None:
        FileRecord.__post_init__(self)
        if self.n_layers <= 0:
            raise ValueError(f"{self.file!r} claims {self.n_layers} layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoders:
    """Decoder files by ftype."""

    default: DecoderFtype
    files: dict[DecoderFtype, DecoderFile]

    def __post_init__(self) -> None:
        if self.default not in self.files:
            raise ValueError(f"the default decoder {self.default} is not among the files")

    @property
    def by_bits(self) -> list[DecoderFtype]:
        """Their ftypes, that of most bits a weight first."""
        return sorted(self.files, key=lambda ftype: -self.files[ftype].bits_per_weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """Tower and projector files by precision."""

    default: VisionPrecision
    files: dict[VisionPrecision, VisionFile]

    def __post_init__(self) -> None:
        if self.default not in self.files:
            raise ValueError(f"the default vision precision {self.default} is not among the files")

    @property
    def by_cosine(self) -> list[VisionPrecision]:
        """Their precisions, that which lost the least first."""
        return sorted(self.files, key=lambda precision: -self.files[precision].cosine_to_float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSpec:
    """How messages become tokens.

    ``chat_template`` is Jinja source from the checkpoint (untrusted). ``template_tokens`` are the names that
    Hugging Face hands to templates (``bos_token``, ``eos_token``, …). ``control_tokens`` maps the text of
    each special token to its id: only these, and only where the template wrote them, become control tokens.
    ``user_defined_tokens`` are added tokens that are not special: each is one token, whoever wrote it.
    ``stop_tokens`` end an answer. ``normalizer`` is applied to text before llama.cpp tokenizes it.
    ``image_token`` is what the template writes in the place of an image, None in a bundle without a vision
    tower; no tokenizer sees it, so it need not be in the vocabulary. ``add_bos``: a prompt begins with the
    template's bos_token, also where the template does not write it. ``space_prefix`` is which texts between
    control tokens get a space before them: the "first" of the prompt or "always", unless they begin with
    one, or any ("prepend"); the first space of an answer is then no part of it. ``image_begin`` and
    ``image_end`` are control tokens that stand around each image, wherever the template put it. So does
    ``image_around``, but once where two images follow one another, and a word behind it gets a space before.
    """

    image_token: str | None
    chat_template: str
    template_tokens: dict[str, str]
    control_tokens: dict[str, int]
    user_defined_tokens: dict[str, int]
    stop_tokens: tuple[str, ...]
    normalizer: Literal["NFC"] | None
    add_bos: bool = False
    space_prefix: SpacePrefix = "never"
    image_begin: str | None = None
    image_end: str | None = None
    image_around: str | None = None

    def __post_init__(self) -> None:
        marks = self.image_begin, self.image_end, self.image_around
        for token in (self.bos_token, *marks, *self.stop_tokens):
            if token is not None and token not in self.control_tokens:
                raise ValueError(f"{token!r} is not among control_tokens")

    @property
    def bos_token(self) -> str | None:
        """The token that every prompt begins with, if there is one."""
        return self.template_tokens.get("bos_token", "") if self.add_bos else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the bundle was made from.

    ``weights_sha256`` is over the checkpoint's tensor names, dtypes and shapes and the first 4 KiB of each
    tensor: it tells most trainings of one model apart without reading all of a large checkpoint.
    ``tensors_sha256`` is over the SHA-256 of each whole tensor, and tells all apart; older bundles have none.
    ``vision_model_type`` is None for a decoder without a vision tower. ``quantization`` tells how the
    checkpoint was quantized already, as "AWQ 4-bit, groups of 128"; None if it was not. Where llama.cpp's
    files took the place of a checkpoint, ``architecture`` is ``IMPORTED``, and the hashes are over their
    headers and bytes.
    """

    architecture: str
    vision_model_type: str | None
    text_model_type: str
    config_sha256: str
    weights_sha256: str
    tensors_sha256: str | None = None
    quantization: str | None = None

    def __post_init__(self) -> None:
        for text in (self.architecture, self.vision_model_type, self.text_model_type, self.quantization):
            _check_printable("source", text or "")

    @property
    def is_imported(self) -> bool:
        """Whether it was made from llama.cpp's files, not from a checkpoint."""
        return self.architecture == IMPORTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """bundle.json. ``min_reader_version`` is the oldest schema version whose readers understand this file.

    A decoder without a vision tower has neither ``vision`` nor ``image``. ``mmproj`` has the same tower and
    projector for llama.cpp, if they were asked for; the runtime does not read them. ``quality`` is a report
    on what the quantizations cost, if it was measured. ``prefill`` reads long prompts in int8, if it was
    asked for.
    """

    schema_version: int
    min_reader_version: int
    name: str
    source: Source
    decoders: Decoders
    vision: Vision | None
    image: ImageSpec | None
    prompt: PromptSpec
    mmproj: dict[MmprojFtype, FileRecord] = field(default_factory=dict)
    quality: FileRecord | None = None
    prefill: PrefillFile | None = None

    def __post_init__(self) -> None:
        _check_printable("name", self.name)
        parts = (self.vision, self.image, self.prompt.image_token, self.source.vision_model_type)
        if None in parts and any(part is not None for part in parts):
            raise ValueError("vision, image, prompt.image_token and source.vision_model_type go together")
        if self.image is not None:
            marks = control_ids(self.image.tiles)
            if not set(marks) <= set(self.prompt.control_tokens.values()):
                raise ValueError("a token around tiles is not among control_tokens")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and check ``folder/bundle.json``.

        Raises:
            BundleError: no bundle, damaged, or written by a newer version.
        """
        path = folder / BUNDLE_FILE
        try:
            if not folder.is_dir():
                raise BundleError(
                    f"{folder} is not a folder, nor a name of `acestep-gguf list`: give the bundle that "
                    "`acestep-gguf convert` wrote."
                )
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # reading a FIFO would wait
                raise BundleError(f"{path} is not a file: convert the checkpoint again.")
            if status.st_size > MAX_BUNDLE_JSON_BYTES:
                raise BundleError(f"{path} is too large to be a bundle.json: convert the checkpoint again.")
            raw = msgspec.json.decode(path.read_bytes())
        except FileNotFoundError:
            raise BundleError(_why_no_bundle(folder)) from None
        except OSError as error:
            raise BundleError(
                f"{path} cannot be read ({error.strerror}): check the path and its permissions."
            ) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BundleError(f"{path} cannot be read ({error}): convert the checkpoint again.") from error
        _check_version(path, raw)
        try:
            return msgspec.convert(raw, type=cls)
        except (msgspec.ValidationError, RecursionError) as error:
            raise BundleError(f"{path} is damaged ({error}): convert the checkpoint again.") from error

    def write(self, folder: Path) -> None:
        """Write ``folder/bundle.json`` under a temporary name and rename it into place."""
        text = msgspec.json.format(msgspec.json.encode(self), indent=2)
        temporary = folder / partial_name(BUNDLE_FILE)
        with temporary.open("wb") as file:
            file.write(text + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / BUNDLE_FILE)

    def decoder(self, ftype: str | None = None) -> DecoderFile:
        """The decoder file of ``ftype``, in any case, by default the bundle's default.

        Raises:
            BundleError: the bundle has no such decoder.
        """
        wanted = self.decoders.default if ftype is None else ftype_from(ftype)
        for name, record in self.decoders.files.items():
            if name == wanted:
                return record
        have = ", ".join(self.decoders.files)
        made = f", or `convert` with quant={wanted}" if wanted in FTYPES else ""
        raise BundleError(
            f"this bundle has no decoder {wanted!r}: choose from {have}{made}.",
            settings=["quant"],
        )

    def vision_file(self, precision: str | None = None) -> VisionFile:
        """The tower's files in ``precision``, in any case, by default the bundle's default.

        Raises:
            PromptError: the bundle has no vision tower.
            BundleError: it has none of this precision.
        """
        vision, _ = self.tower()
        wanted = vision.default if precision is None else precision.lower()
        for name, record in vision.files.items():
            if name == wanted:
                return record
        have = ", ".join(vision.files)
        made = f", or `convert` with vision={wanted}" if wanted in VISION_PRECISIONS else ""
        raise BundleError(
            f"this bundle has no {wanted!r} tower: choose from {have}{made}.",
            settings=["vision"],
        )

    def tower(self) -> tuple[Vision, ImageSpec]:
        """The files of the vision tower, and how a picture is prepared for it.

        Raises:
            PromptError: the bundle has no vision tower.
        """
        if self.vision is None or self.image is None:
            raise PromptError(NO_TOWER)
        return self.vision, self.image

    def records(self) -> Iterator[FileRecord]:
        """All files that belong to the bundle."""
        yield from self.decoders.files.values()
        for vision in self.vision.files.values() if self.vision else ():
            yield vision
            yield vision.data
        yield from self.mmproj.values()
        if self.prefill:
            yield self.prefill
            yield self.prefill.data
        if self.quality:
            yield self.quality


def min_reader_version(image: ImageSpec | None, prompt: PromptSpec) -> int:
    """The oldest schema version whose readers understand a bundle.

    Before 3, a picture was one crop, and before 4, there was nothing between its crops, which had one size.
    """
    if image is not None and isinstance(image.tiles, (LongestEdgeTiles, *SIZES_OF_THEIR_OWN)):
        return 4
    has_tiles = image is not None and image.tiles is not None
    return 3 if has_tiles or prompt.image_begin is not None or prompt.image_end is not None else 2


def _check_printable(field_name: str, text: str) -> None:
    """Refuse what would do more on a terminal than stand there: a stranger may have written it."""
    if not text.isprintable():
        raise ValueError(f"{field_name} {text!r} has characters that cannot be printed")


def check_file(folder: Path, record: FileRecord) -> Path:
    """Path of a bundle's file, after its existence and size were checked.

    Raises:
        BundleError: missing, or of another size than recorded.
    """
    path = folder / record.file
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BundleError(f"{path} is missing: copy the whole bundle, or convert again.") from error
    if size != record.bytes:
        raise BundleError(
            f"{path} has {size} bytes, not {record.bytes}: it is half-copied or damaged, copy it again."
        )
    return path


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` looks like a Hugging Face checkpoint."""
    return (folder / "config.json").is_file()


def _why_no_bundle(folder: Path) -> str:
    """What to say of a folder without bundle.json."""
    if leftovers(folder):
        return (
            f"{folder} is not a bundle yet, its conversion was interrupted or is still running: "
            "the same `acestep-gguf convert` command carries on with it."
        )
    hint = "run `acestep-gguf convert` first" if is_checkpoint(folder) else "check the path"
    return f"{folder} is not a bundle, it has no {BUNDLE_FILE}: {hint}."


def _check_version(path: Path, raw: Any) -> None:
    needed = raw.get("min_reader_version") if isinstance(raw, dict) else None
    if not isinstance(needed, int):
        raise BundleError(f"{path} is not a bundle.json of this software (no min_reader_version).")
    if needed > SCHEMA_VERSION:
        raise BundleError(
            f"{path} needs schema version {needed}, this program reads up to {SCHEMA_VERSION}: "
            "upgrade it with `pip install -U acestep-gguf`."
        )
