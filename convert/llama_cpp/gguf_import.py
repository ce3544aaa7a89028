"""llama.cpp's files, a decoder and perhaps its mmproj -> bundle."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Final, cast

import numpy as np
from gguf import Keys
from gguf.utility import model_weight_count_rounded_notation

from acestep_gguf.bundle.decoder_info import check_vocabulary
from acestep_gguf.bundle.gguf_header import GGUFHeader
from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.bundle.names import (
    LLAMA_FTYPE,
    VISION_PRECISIONS,
    DecoderFtype,
    VisionPrecision,
    decoder_file_name,
)
from acestep_gguf.bundle.schema import (
    IMPORTED,
    SCHEMA_VERSION,
    Bundle,
    DecoderFile,
    Decoders,
    FileRecord,
    PromptSpec,
    Source,
    min_reader_version,
)
from acestep_gguf.convert.conversion_plan import BASE_MEMORY, check_precisions
from acestep_gguf.convert.llama_cpp.gguf_prompt import (
    DEFAULT_IMAGE_TOKEN,
    byte_level_vocabulary,
    read_gguf_prompt,
)
from acestep_gguf.convert.llama_cpp.mmproj_tower import MmprojTower, read_mmproj
from acestep_gguf.convert.output_folder import OutputFolder
from acestep_gguf.convert.tower.calibration import find_pictures
from acestep_gguf.convert.tower.files import (
    PlannedTower,
    plan_tower,
    vision_with_default,
    write_towers,
)
from acestep_gguf.errors import BundleError, UsageError
from acestep_gguf.quantize.conversion_events import FileDone, Finished, Planned, PlannedFile
from acestep_gguf.quantize.gguf_source import GgufFile, GgufSource
from acestep_gguf.quantize.planning import OnEvent, ProgressTally, bytes_free, check_disk, worker_threads
from acestep_gguf.quantize.staging import Staging

CHUNK_BYTES: Final = 2**22
# llama.cpp adds this to general.file_type if it had to guess.
GUESSED: Final = 1024
# What llama.cpp takes a file for that does not say what it is, by the type that most tensors have.
TYPICAL: Final[Mapping[str, DecoderFtype]] = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "Q3_K": "Q3_K_M"}


@dataclass(frozen=True, slots=True)
class Mmproj:
    """An mmproj file, and what it says."""

    file: GgufFile
    tower: MmprojTower


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """The files of a model, read and checked but for their weights; ``mmproj`` is None if it cannot see."""

    decoder: GgufSource
    mmproj: Mmproj | None
    prompt: PromptSpec
    ftype: DecoderFtype

    @property
    def size_label(self) -> str:
        """The decoder's number of weights, as in ``Name-5.6M-Q4_K_M.gguf``."""
        return cast(str, model_weight_count_rounded_notation(self.decoder.info.n_params))

    @property
    def image(self) -> ImageSpec | None:
        """How pictures are prepared, None if it cannot see."""
        return None if self.mmproj is None else self.mmproj.tower.image

    def source(self, decoder_file: FileRecord) -> Source:
        """What the bundle was made from, told by hashes of its files."""
        headers, weights, vision_model_type = _header_bytes(self.decoder), decoder_file.sha256, None
        if self.mmproj is not None:
            headers += _header_bytes(self.mmproj.file)
            weights += f" {_sha256(self.mmproj.file)}"
            vision_model_type = self.mmproj.tower.config.vision_config.model_type
        return Source(
            architecture=IMPORTED,
            vision_model_type=vision_model_type,
            text_model_type=self.decoder.info.architecture,
            config_sha256=hashlib.sha256(headers).hexdigest(),
            weights_sha256=hashlib.sha256(weights.encode()).hexdigest(),
        )


def import_gguf(
    decoder: Path,
    out: Path,
    *,
    mmproj: Path | None = None,
    name: str | None = None,
    chat_template: str | None = None,
    image_token: str | None = None,
    copy: bool = False,
    vision: Sequence[VisionPrecision] | None = None,
    calibration: Path | None = None,
    threads: int | None = None,
    on_event: OnEvent = lambda _: None,
) -> Bundle:
    """Make the bundle ``out`` of a decoder and, if it can see, the tower and projector of its mmproj file.

    The decoder becomes a hard link where the disk allows it, else a copy. After an error, ``out`` is as it
    was before.

    Args:
        decoder: GGUF file of the decoder, of any type.
        out: folder of the bundle; it may exist if it is empty.
        mmproj: GGUF file of the tower and projector, of any type; without one, the bundle answers questions
            about text.
        name: the model's name in file names, by default what the decoder says.
        chat_template: Jinja source, in the place of the decoder's.
        image_token: what the chat template writes in the place of a picture, by default ``<image>``,
            InternVL's ``<IMG_CONTEXT>`` or Pixtral's ``[IMG]``.
        copy: copy the decoder in any case, so that a later change of the original changes nothing.
        vision: precisions of the tower, by default all.
        calibration: folder of pictures that show what int8 would ruin; by default a few of our own.
        threads: threads of the calibration, by default one for each core.
        on_event: called with each event, see conversion_events.py.

    Raises:
        BundleError: a file is missing, damaged, or not of this model; or ``out`` cannot be written.
        CheckpointError: something is missing that an argument can give, such as the chat template.
        UnsupportedModelError: they are of a kind that this software does not run.
        UsageError: an argument is out of its range, or about pictures where there is no mmproj.
    """
    started = perf_counter()
    n_threads = worker_threads(threads)
    if mmproj is None:
        _check_nothing_for_pictures(image_token=image_token, vision=vision, calibration=calibration)
    precisions = VISION_PRECISIONS if vision is None else vision
    check_precisions(precisions)
    with _opened(decoder, mmproj, chat_template, image_token) as model:
        output = OutputFolder.read(out)
        if output.bundle is not None:
            raise BundleError(f"{out} is a bundle already: give a new folder.")
        name = output.model_name(name, _own_name(model))
        output.check_no_foreign_files(name, model.size_label)
        towers = _plan_towers(model, precisions, calibration)
        file_name = decoder_file_name(name, model.size_label, model.ftype)
        is_link = not copy and _can_link(decoder, out)
        planned = _planned(model, out, file_name, towers, is_link=is_link)
        on_event(planned)
        progress = ProgressTally(planned, on_event)
        with Staging(out, progress.add) as staging:
            check_disk(planned)
            record = _take_decoder(model.decoder, file_name, None if is_link else staging, progress)
            files = write_towers(towers, staging, n_threads, progress)
            staging.publish()
            bundle = Bundle(
                schema_version=SCHEMA_VERSION,
                min_reader_version=min_reader_version(model.image, model.prompt),
                name=name,
                source=model.source(record),
                decoders=Decoders(default=model.ftype, files={model.ftype: record}),
                vision=vision_with_default(files),
                image=model.image,
                prompt=model.prompt,
            )
            if is_link:
                _link(decoder, out / file_name)
            bundle.write(out)
    seconds = perf_counter() - started
    for file in bundle.records():
        on_event(FileDone(file=file.file, bytes=file.bytes, sha256=file.sha256, seconds=seconds))
    on_event(Finished(folder=str(out), seconds=seconds))
    return bundle


def _check_nothing_for_pictures(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(
                f"{name} is about pictures, which a decoder alone cannot see: leave it out, or give the "
                "mmproj file, too.",
                settings=[name],
            )


@contextmanager
def _opened(
    decoder: Path, mmproj: Path | None, chat_template: str | None, image_token: str | None
) -> Iterator[GgufModel]:
    with ExitStack() as files:
        opened_mmproj = None
        if mmproj is not None:
            # Before the decoder: what it says helps who confused the two.
            file = files.enter_context(GgufFile(mmproj))
            opened_mmproj = Mmproj(file, read_mmproj(file))
        opened = files.enter_context(GgufSource(decoder))
        if opened_mmproj and opened.info.embedding_length != opened_mmproj.tower.image.n_embd:
            raise BundleError(
                f"{mmproj} gives embeds of {opened_mmproj.tower.image.n_embd} numbers, {decoder} takes "
                f"{opened.info.embedding_length}: give two files of one model."
            )
        prompt = _prompt(opened.header, opened_mmproj, chat_template, image_token)
        if opened_mmproj and opened_mmproj.tower.longest_edge is not None:
            tower = opened_mmproj.tower.with_tile_marks(*byte_level_vocabulary(opened.header))
            if not set(tower.tile_marks) <= set(prompt.control_tokens.values()):
                raise BundleError(f"{decoder} makes tokens around tiles of plain text: get another file.")
            opened_mmproj = replace(opened_mmproj, tower=tower)
        ftype = _ftype(opened.header)
        model = GgufModel(decoder=opened, mmproj=opened_mmproj, prompt=prompt, ftype=ftype)
        check_vocabulary(opened.header, prompt, model.image)
        yield model


def _prompt(
    header: GGUFHeader, mmproj: Mmproj | None, chat_template: str | None, image_token: str | None
) -> PromptSpec:
    if mmproj is None:
        return read_gguf_prompt(header, chat_template, None)
    config = mmproj.tower.config
    family, tower = config.family, config.vision_config.family
    image_token = image_token or tower.image_token or family.image_token or DEFAULT_IMAGE_TOKEN
    prompt = read_gguf_prompt(header, chat_template, image_token)
    image_begin, image_end = config.picture_marks
    try:
        return replace(prompt, image_begin=image_begin, image_end=image_end)
    except ValueError as error:
        raise BundleError(
            f"{header.path} is no decoder of {family.name} ({error}): get another file."
        ) from error


def _ftype(header: GGUFHeader) -> DecoderFtype:
    """What the file says that it is, or what most of its weights are."""
    given = header.metadata.get(Keys.General.FILE_TYPE)
    for ftype, number in LLAMA_FTYPE.items():
        if isinstance(given, int) and given & ~GUESSED == number:
            return ftype
    n_weights: Counter[str] = Counter()
    for tensor in header.tensors:
        n_weights[tensor.type.name] += tensor.n_elements
    most = n_weights.most_common(1)[0][0]
    ftype = TYPICAL.get(most, cast(DecoderFtype, most))
    if ftype not in LLAMA_FTYPE:
        raise BundleError(f"{header.path} holds weights of the type {most}: get it in another quantization.")
    return ftype


def _own_name(model: GgufModel) -> str:
    name = model.decoder.header.metadata.get(Keys.General.NAME)
    is_name = isinstance(name, str) and name.strip() and name.isprintable()
    return str(name) if is_name else model.decoder.path.stem


def _plan_towers(
    model: GgufModel, precisions: Sequence[VisionPrecision], calibration: Path | None
) -> list[PlannedTower]:
    if model.mmproj is None:
        return []
    tower = model.mmproj.tower
    pictures = find_pictures(calibration, tower.image) if "int8" in precisions else ()
    return [
        plan_tower(tower.config, tower.image, tower.tensors, precision, pictures)
        for precision in VISION_PRECISIONS
        if precision in precisions
    ]


def _planned(
    model: GgufModel, out: Path, file_name: str, towers: Sequence[PlannedTower], *, is_link: bool
) -> Planned:
    header = model.decoder.header
    decoder_file = PlannedFile(
        file=file_name,
        label=model.ftype,
        bytes=header.file_size,
        bytes_kept=0,
        bits_per_weight=header.bits_per_weight,
        types=dict(Counter(tensor.type.name for tensor in header.tensors).most_common()),
        fallbacks={},
    )
    files = (decoder_file, *(file for tower in towers for file in tower.planned_files()))
    return Planned(
        folder=str(out),
        files=files,
        bytes_needed=sum(file.bytes for file in files),
        # A link takes nothing more than the original has.
        bytes_free=bytes_free(out, ()) + (decoder_file.bytes if is_link else 0),
        memory=BASE_MEMORY + max((tower.memory for tower in towers), default=0),
    )


def _take_decoder(
    source: GgufSource, name: str, staging: Staging | None, progress: ProgressTally
) -> DecoderFile:
    """Copy the decoder, or without ``staging`` only hash it."""
    digest = hashlib.sha256()
    file = None if staging is None else staging.create(name)
    for chunk in _chunks(source):
        digest.update(chunk)
        if file is None:
            progress.add(len(chunk), 0)
        else:
            file.write(chunk)
    progress.add(0, len(source.tensors))
    return DecoderFile(
        file=name,
        bytes=source.header.file_size,
        sha256=digest.hexdigest(),
        bits_per_weight=round(source.header.bits_per_weight, 3),
    )


def _can_link(decoder: Path, out: Path) -> bool:
    """Whether the disk of ``out`` can hold another name of ``decoder``: tried where ``out`` will be."""
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    trial = folder / f".acestep-gguf.{os.getpid()}.link"
    try:
        os.link(decoder.resolve(), trial)
        trial.unlink()
    except OSError:
        return False
    return True


def _link(decoder: Path, path: Path) -> None:
    path.unlink(missing_ok=True)  # of a run that was killed
    os.link(decoder.resolve(), path)


def _chunks(file: GgufFile) -> Iterator[memoryview]:
    """The bytes of a file."""
    size = file.header.file_size
    for start in range(0, size, CHUNK_BYTES):
        chunk = np.empty(min(CHUNK_BYTES, size - start), np.uint8)
        file.read_into(chunk, start)
        yield chunk.data


def _sha256(file: GgufFile) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(file):
        digest.update(chunk)
    return digest.hexdigest()


def _header_bytes(file: GgufFile) -> bytes:
    header = np.empty(file.header.data_offset, np.uint8)
    file.read_into(header, 0)
    return header.tobytes()
