"""What reads calibration data: the bundle's best decoder and tower, with settings that fit this machine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.engine.question import Question
from acestep_gguf.engine.workload import plan_here, workload_of
from acestep_gguf.errors import MemoryShortageError
from acestep_gguf.options import AnswerOptions, EngineOptions
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.machine_settings import machine_settings
from acestep_gguf.plan.memory import plan_memory
from acestep_gguf.plan.settings import Settings, Workload
from acestep_gguf.quantize.importance.reader import CalibrationReader
from acestep_gguf.quantize.importance.samples import Sample
from acestep_gguf.quantize.importance.sums import SquareSums
from acestep_gguf.sizes import show_size
from acestep_gguf.vision.encoder import ImageEncoder


@dataclass(frozen=True, slots=True)
class Loaded:
    """``reader`` reads samples with pictures as ``encoder`` encodes them."""

    reader: CalibrationReader
    encoder: ImageEncoder


def best_of(bundle: Bundle, engine: EngineOptions) -> EngineOptions:
    """``engine`` with the decoder of most bits and the tower that lost the least, where it names none.

    Raises:
        BundleError: the bundle has not what it names.
    """
    quant = engine.quant or bundle.decoders.by_bits[0]
    bundle.decoder(quant)
    vision = engine.vision
    if vision is None and bundle.vision is not None:
        vision = bundle.vision.by_cosine[0]
    return replace(engine, quant=quant, vision=vision, cache=False)


def workload_of_samples(
    files: BundleModel, samples: Sequence[Sample], max_tokens: int, engine: EngineOptions
) -> Workload:
    """A workload than which no sample has more text or more pictures."""
    text = max(
        (sample.prompt + (sample.answer or "") for sample in samples), key=lambda text: len(text.encode())
    )
    images = max((sample.images for sample in samples), key=len)
    longest = Question(text, images, AnswerOptions(max_tokens=max_tokens))
    return workload_of(files, None, longest, engine)


@contextmanager
def loaded(
    files: BundleModel,
    engine: EngineOptions,
    workload: Workload,
    sums: SquareSums,
    *,
    process_output: bool,
) -> Iterator[Loaded]:
    """What ``engine`` names (see ``best_of``), for ``workload``; squares are added to ``sums``.

    Raises:
        MemoryShortageError: it does not fit.
        BundleError: a file is missing or damaged.
        DecodeError: llama.cpp cannot load the decoder.
    """
    bundle = files.bundle
    defaults, _ = machine_settings(bundle, bundle.decoder(engine.quant), pictures=workload.images > 0)
    plan = plan_here(files, engine, workload, defaults, None)
    # All rows of a call give logits, so a call is a micro-batch.
    n_ubatch = min(plan.settings.n_ubatch, plan.settings.n_batch)
    settings = replace(plan.settings, n_batch=n_ubatch, n_ubatch=n_ubatch, n_outputs_max=n_ubatch)
    _check_memory(files, settings, workload, engine, n_gpus=len(plan.machine.gpus), ram=plan.machine.ram)
    encoder = ImageEncoder(
        files.folder,
        bundle,
        n_threads=settings.tower_threads,
        precision=settings.vision,
        image_tokens=engine.image_tokens,
        max_tiles=engine.max_tiles,
        opening_limit=plan.opening_limit,
    )
    with CalibrationReader(files, settings, sums, process_output=process_output) as reader:
        try:
            yield Loaded(reader, encoder)
        finally:
            encoder.close()


def _check_memory(
    files: BundleModel,
    settings: Settings,
    workload: Workload,
    engine: EngineOptions,
    *,
    n_gpus: int,
    ram: int,
) -> None:
    """The plan counted the logits of one row."""
    memory = plan_memory(files, settings, workload, n_gpus=n_gpus, options=engine)
    needed = memory.anonymous if engine.allow_paging else memory.ram
    if needed > ram:
        raise MemoryShortageError(
            f"logits of {settings.n_ubatch} rows need {show_size(needed - ram)} more RAM: lower n_ubatch.",
            settings=["n_ubatch"],
        )
