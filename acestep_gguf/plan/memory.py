"""Where every byte of a plan lies."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal

from acestep_gguf.bundle.gguf_header import TensorInfo
from acestep_gguf.cpus import cpu_flags
from acestep_gguf.llama.params import ContextParams
from acestep_gguf.options import EngineOptions
from acestep_gguf.plan.bundle_model import BundleModel, DecoderModel
from acestep_gguf.plan.compute_buffers import compute_buffer_bytes, output_buffer_bytes
from acestep_gguf.plan.decoder_memory import kv_layer_bytes, n_bytes, state_bytes
from acestep_gguf.plan.draft import Draft
from acestep_gguf.plan.machine import PROCESS_BYTES
from acestep_gguf.plan.placement import RAM, Placement
from acestep_gguf.plan.prefill_memory import LEAST_ROWS, activation_bytes, streamed_bytes
from acestep_gguf.plan.repacking import is_repacked
from acestep_gguf.plan.settings import Settings, Workload
from acestep_gguf.plan.work_buffer import work_buffer_bytes
from acestep_gguf.vision.encoder import REMEMBERED

# Measured (docs/hardware.md): llama.cpp's vocabulary, for each token.
VOCABULARY_BYTES_PER_TOKEN: Final = 300
# Left free on each GPU, as llama.cpp's --fit does: the driver's context, and buffers that grow in use.
GPU_RESERVE: Final = 2**30

# Anonymous memory cannot be dropped; of a mapped file, the system drops pages and reads them again.
Kind = Literal["anonymous", "mapped", "gpu", "remote"]
# When it is taken: always, while pictures are opened before anything is loaded, while they are encoded, while
# the decoder is loaded.
Phase = Literal["process", "opening", "tower", "decoder"]


TOWER_IN_RAM: Final[tuple[int, Kind]] = (RAM, "anonymous")
TOWER_ON_GPU: Final[tuple[int, Kind]] = (1, "gpu")
# Measured (docs/hardware.md): OpenVINO keeps the weights beside those that it compiled, and has a runtime.
COMPILED_TOWER: Final = 2
PROVIDER_BYTES: Final = 48 * 2**20


@dataclass(frozen=True, slots=True)
class Part:
    """``n_bytes`` on ``device`` (0: RAM, then GPUs, then devices of servers)."""

    name: str
    n_bytes: int
    device: int = RAM
    kind: Kind = "anonymous"
    phase: Phase = "decoder"


@dataclass(frozen=True, slots=True)
class Memory:
    """All parts of a plan.

    ``staged``: tower and decoder are not there at the same time. ``shared``: GPUs whose memory is RAM.
    """

    parts: tuple[Part, ...]
    staged: bool
    shared: range = range(0)

    @property
    def ram(self) -> int:
        """The most RAM at a time, mapped weights among it, and what lies on a GPU that shares it."""
        return self._peak(part for part in self.parts if part.device == RAM or part.device in self.shared)

    @property
    def anonymous(self) -> int:
        """The most anonymous memory, in bytes, that is used at a time; on a GPU that shares it, too."""
        shared = (part for part in self.parts if part.device in self.shared)
        return self._peak([*(part for part in self.parts if part.kind == "anonymous"), *shared])

    @property
    def mapped(self) -> int:
        """Bytes of weights that are mapped from the file."""
        return sum(part.n_bytes for part in self.parts if part.kind == "mapped")

    def gpu(self, number: int) -> int:
        """Bytes on a GPU; the first one has the number 1."""
        return _bytes_on(number, self.parts)

    def _peak(self, parts: Iterable[Part]) -> int:
        sums: dict[Phase, int] = {"process": 0, "opening": 0, "tower": 0, "decoder": 0}
        for part in parts:
            sums[part.phase] += part.n_bytes
        loaded = max(sums["tower"], sums["decoder"]) if self.staged else sums["tower"] + sums["decoder"]
        return sums["process"] + max(sums["opening"], loaded)


def placement_of(model: DecoderModel, settings: Settings, n_gpus: int) -> Placement:
    """Devices of the layers with these settings."""
    return Placement.of(
        model.shape.n_layer,
        settings.n_gpu_layers,
        n_attention_only=settings.n_attention_only,
        kv_on_gpu=settings.offload_kqv,
        gpu_shares=settings.tensor_split or (settings.n_gpu_layers,) * min(1, n_gpus),
    )


def plan_memory(
    bundle: BundleModel,
    settings: Settings,
    workload: Workload,
    *,
    n_gpus: int,
    n_remote: int = 0,
    shares_ram: bool = False,
    options: EngineOptions | None = None,
    draft: Draft | None = None,
) -> Memory:
    """All parts, of a machine with ``n_gpus`` GPUs.

    Args:
        bundle: the model.
        settings: how it is run.
        workload: what will be asked.
        n_gpus: GPUs of the machine.
        n_remote: how many of them, the last ones, are devices of servers.
        shares_ram: the others have no memory but RAM.
        options: what a picture may cost; by default all that the model was made for.
        draft: what guesses ahead. It opens the pictures again, and keeps its own tower.
    """
    options = options or EngineOptions()
    n_local = n_gpus - n_remote
    opening_later = workload.opening_later
    if draft is not None:
        opening_later = max(opening_later, workload.opening_ahead)
    parts = [
        Part("process", PROCESS_BYTES, phase="process"),
        Part("opening a picture", workload.opening_ahead if workload.images else 0, phase="opening"),
        Part("opening a picture later", opening_later if workload.images else 0),
        *_model_parts(bundle, settings, workload, options, n_gpus=n_gpus, n_local=n_local),
        Part("chosen image tokens", _chosen_bytes(bundle, workload, options)),
        Part("copy of the KV cache", _copied_bytes(bundle, settings, workload, options)),
        *(Part("reserve", GPU_RESERVE, gpu, "gpu") for gpu in range(1, n_local + 1) if settings.uses_gpus),
    ]
    if draft is not None:
        draft_parts = [
            *_model_parts(
                draft.bundle, draft.settings(settings), workload, options, n_gpus=n_gpus, n_local=n_local
            ),
            Part("chosen image tokens", _chosen_bytes(draft.bundle, workload, options)),
        ]
        parts += [replace(part, name=f"draft: {part.name}", phase="decoder") for part in draft_parts]
    parts = [replace(part, kind="remote") if part.device > n_local else part for part in parts]
    shared = range(1, n_local + 1) if shares_ram else range(0)
    return Memory(tuple(part for part in parts if part.n_bytes), settings.staged, shared)


def _model_parts(
    bundle: BundleModel,
    settings: Settings,
    workload: Workload,
    options: EngineOptions,
    *,
    n_gpus: int,
    n_local: int,
) -> Iterator[Part]:
    model = bundle.decoder(settings.quant)
    placement = placement_of(model, settings, n_gpus)
    yield Part("vocabulary", VOCABULARY_BYTES_PER_TOKEN * model.shape.n_vocab)
    yield from _picture_parts(bundle, settings, workload, options.max_tiles)
    yield from _weight_parts(model, settings, placement, repackable=n_local == 0)
    buffers = [*_buffer_parts(model, settings, placement)]
    yield from buffers
    if settings.n_gpu_layers:
        yield from _sending_parts(model, settings, placement, buffers, n_local)
    yield from _int8_parts(bundle, settings, workload, options)


def _picture_parts(
    bundle: BundleModel, settings: Settings, workload: Workload, max_tiles: int | None
) -> Iterator[Part]:
    if not workload.images:
        return
    if settings.vision is not None:
        tower, provider = bundle.tower(settings.vision), settings.vision_provider
        device, kind = TOWER_ON_GPU if provider == "cuda" else TOWER_IN_RAM
        weights = tower.weights
        if provider not in ("cpu", "cuda"):
            weights = COMPILED_TOWER * weights + PROVIDER_BYTES
        yield Part("vision tower, weights", weights, device, kind, phase="tower")
        yield Part("vision tower, activations", tower.activations, device, kind, phase="tower")
    # Where other questions follow, their pictures are remembered, too.
    n_kept = workload.images if workload.may_stage else max(workload.images, REMEMBERED)
    yield Part("image embeds", bundle.embeds_bytes(n_kept, max_tiles), phase="process")
    if settings.vision is not None:
        yield Part("crops", bundle.crop_bytes(n_kept, max_tiles), phase="process")


def _chosen_bytes(bundle: BundleModel, workload: Workload, options: EngineOptions) -> int:
    """Rows of the embeds that are copied where a picture may cost only so many tokens."""
    image = bundle.bundle.image
    _, most = bundle.most_of_picture(workload.images, options.max_tiles)
    if image is None or options.image_tokens is None or options.image_tokens >= most:
        return 0
    return 4 * image.n_embd * bundle.image_tokens(workload.images, options)


def _copied_bytes(bundle: BundleModel, settings: Settings, workload: Workload, options: EngineOptions) -> int:
    """The decoder's state after the last picture, from when it is reached until it is on disk."""
    if not settings.keep_states or not workload.images:
        return 0
    n_tokens = workload.n_text_before + _picture_tokens(bundle, workload, options)
    shape = bundle.decoder(settings.quant).shape
    return state_bytes(shape, min(n_tokens, settings.n_ctx), settings.type_k, settings.type_v)


def _picture_tokens(bundle: BundleModel, workload: Workload, options: EngineOptions) -> int:
    if workload.image_tokens is not None:
        return workload.image_tokens
    return bundle.image_tokens(workload.images, options)


def _int8_parts(
    bundle: BundleModel, settings: Settings, workload: Workload, options: EngineOptions
) -> Iterator[Part]:
    """The int8 layers, what they compute with, and the state that is handed over."""
    if settings.int8_layers is None or (layout := bundle.int8_layers) is None:
        return
    n_weights = layout.n_layers * layout.stride if settings.int8_layers == "kept" else streamed_bytes(layout)
    yield Part("int8 layers, weights", n_weights, kind="mapped")
    shape = bundle.decoder(settings.quant).shape
    n_read = settings.n_ctx
    n_after = workload.n_text_after if workload.n_text_after >= LEAST_ROWS else 0
    if workload.images and workload.n_text is not None:
        n_before = workload.n_text_before + _picture_tokens(bundle, workload, options)
        n_read = min(n_read, n_before + n_after)
    n_call = min(settings.n_batch, n_read)
    yield Part("int8 layers, activations", activation_bytes(shape, n_call, n_read))
    # A copy for the disk comes later, and is as large, unless there is more to read meanwhile.
    if n_after or not _copied_bytes(bundle, settings, workload, options):
        yield Part("keys and values", state_bytes(shape, n_read, settings.type_k, settings.type_v))


def _weight_parts(
    model: DecoderModel, settings: Settings, placement: Placement, *, repackable: bool
) -> Iterator[Part]:
    """The decoder's weights. With a GPU, llama.cpp repacks none; those beside a server are as without."""
    weights = model.weights
    yield from _ram_weights("token embeddings", [weights.embeddings], settings, repackable=False)
    output = [weights.output_norm, *([] if weights.is_tied else [weights.output])]
    if placement.output == RAM:
        yield from _ram_weights("output matrix", output, settings, repackable=repackable)
    else:  # a tied matrix lies there a second time
        yield Part(
            "output matrix", weights.output_norm.nbytes + weights.output.nbytes, placement.output, "gpu"
        )
    halves = [
        (device, half, size)
        for layer, attention, ffn in zip(weights.layers, placement.attention, placement.ffn, strict=True)
        for device, half, size in (
            (attention, layer.attention, layer.attention_bytes),
            (ffn, layer.ffn, layer.ffn_bytes),
        )
    ]
    for gpu in range(1, placement.n_gpus + 1):
        size = sum(size for device, _, size in halves if device == gpu)
        yield Part(_layers_name(placement, gpu), size, gpu, "gpu")
    in_ram = [tensor for device, half, _ in halves if device == RAM for tensor in half]
    yield from _ram_weights(_layers_name(placement, RAM), in_ram, settings, repackable=repackable)


def _layers_name(placement: Placement, device: int) -> str:
    whole = sum(a == f == device for a, f in zip(placement.attention, placement.ffn, strict=True))
    attention = placement.attention.count(device) - whole
    ffn = placement.ffn.count(device) - whole
    halves = [f"attention of {attention}"] * bool(attention) + [f"MLP of {ffn}"] * bool(ffn)
    return ", ".join([f"{whole} of {len(placement.attention)} layers", *halves])


def _ram_weights(
    name: str, tensors: list[TensorInfo], settings: Settings, *, repackable: bool
) -> Iterator[Part]:
    """Weights in RAM: mapped, read into memory, or repacked into it."""
    repacked = 0
    if settings.use_extra_bufts and repackable:
        repacked = n_bytes(tensor for tensor in tensors if is_repacked(tensor, cpu_flags()))
    yield Part(name, n_bytes(tensors) - repacked, kind="mapped" if settings.use_mmap else "anonymous")
    yield Part(f"{name}, repacked", repacked)


def _buffer_parts(model: DecoderModel, settings: Settings, placement: Placement) -> Iterator[Part]:
    shape, params = model.shape, settings.context_params()
    kv = settings.n_seq_max * kv_layer_bytes(shape, settings.n_ctx, settings.type_k, settings.type_v)
    compute = _compute_buffers(model, params, placement)
    for device in range(placement.n_gpus + 1):
        kind: Kind = "gpu" if device else "anonymous"
        yield Part("KV cache", kv * placement.kv.count(device), device, kind)
        yield Part("compute buffer", compute[device], device, kind)
    yield Part("output buffer", output_buffer_bytes(shape, params))
    yield Part("work buffer", _work_buffer(model, params))


def _sending_parts(
    model: DecoderModel, settings: Settings, placement: Placement, buffers: list[Part], n_local: int
) -> Iterator[Part]:
    """What a server takes beside its buffers, and what weights on their way to it take here.

    A tensor is sent whole: both sides hold a copy of it, and without mmap what was read of the file is one
    more. Buffers that are made after loading then take that place.
    """
    largest = _largest_tensors(model, placement)
    copies = 1 if settings.use_mmap else 2
    sent = copies * max(largest[n_local + 1 :], default=0)
    yield Part("weights on their way", max(0, sent - _bytes_on(RAM, buffers)))
    products = _work_buffer(model, settings.context_params())
    for device in range(n_local + 1, placement.n_gpus + 1):
        if largest[device]:
            scratch = max(products, largest[device] - _bytes_on(device, buffers))
            yield Part("scratch of the server", scratch, device, "gpu")


def _bytes_on(device: int, parts: Iterable[Part]) -> int:
    return sum(part.n_bytes for part in parts if part.device == device)


@lru_cache(maxsize=256)
def _largest_tensors(model: DecoderModel, placement: Placement) -> tuple[int, ...]:
    """Bytes of the largest tensor on each device."""
    weights = model.weights
    placed: list[tuple[int, tuple[TensorInfo, ...]]]
    placed = [(placement.output, (weights.output, weights.output_norm))]
    for layer, attention, ffn in zip(weights.layers, placement.attention, placement.ffn, strict=True):
        placed += [(attention, layer.attention), (ffn, layer.ffn)]
    largest = [0] * (placement.n_gpus + 1)
    for device, tensors in placed:
        largest[device] = max(largest[device], *(tensor.nbytes for tensor in tensors))
    return tuple(largest)


@lru_cache(maxsize=256)
def _compute_buffers(model: DecoderModel, params: ContextParams, placement: Placement) -> tuple[int, ...]:
    return tuple(compute_buffer_bytes(model.shape, model.weights, params, placement))


@lru_cache(maxsize=256)
def _work_buffer(model: DecoderModel, params: ContextParams) -> int:
    return work_buffer_bytes(model.shape, model.weights, params)
