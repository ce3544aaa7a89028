"""Ask llama.cpp what a decoder would take, without loading one: the judge of acestep_gguf/plan.

    python -m scripts.checks.simulated_load --shapes 0.5b 32b --ftypes Q4_K_M

llama.cpp has no C API for the sizes of its buffers, so they are read from the lines that it logs, here and
nowhere else. A simulated load (``no_alloc``) needs a file of the true length; ours is a header and a hole.

    python -m scripts.checks.simulated_load --shapes 0.5b --ftypes Q4_K_M --placements 100

With --placements, so many random settings are compared on a GPU that is played
(scripts/checks/played_card.py), or with --gpu on the one that the installed llama.cpp has; these decoders
are really loaded, so take a small shape.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

from gguf import Keys

from acestep_gguf.bundle.gguf_header import TensorInfo, read_gguf_header
from acestep_gguf.bundle.names import FTYPES, LLAMA_FTYPE, Ftype
from acestep_gguf.llama.params import CACHE_TYPES, FLASH_ATTENTION, ContextParams, ModelParams
from acestep_gguf.options import CacheType, FlashAttention
from acestep_gguf.plan.compute_buffers import compute_buffer_bytes, output_buffer_bytes
from acestep_gguf.plan.decoder_memory import (
    DecoderWeights,
    decoder_shape,
    decoder_weights,
    n_bytes,
    padded_n_ctx,
    row_bytes,
)
from acestep_gguf.plan.placement import Placement
from acestep_gguf.plan.search import mlp_tensors
from acestep_gguf.quantize.gguf_layout import GgufLayout, f32, lay_out, string, u32
from acestep_gguf.quantize.recipes import TensorShape, choose_types
from scripts.checks.played_card import Card, play_card, use_card
from scripts.synthetic.checkpoint import SHAPES, Shape

MIB, TIB = 2**20, 2**40
LOG_STEP = 0.01  # MiB: llama.cpp logs two digits
CONTEXTS = (2048, 8192, 32768, 131072)
N_UBATCHES = (128, 512, 2048)
# The KV line is the one that holds in a simulated load, too.
KV_LINE = re.compile(r"llama_kv_cache: size = .*K \(\w+\): +([\d.]+) MiB, V \(\w+\): +([\d.]+) MiB")
BUFFER_LINE = re.compile(r"(\S+) +(compute|output|KV|model) buffer size = +([\d.]+) MiB")

# Where loads are more than simulated.
Gpu = Card | Literal["installed"]


@dataclass(frozen=True)
class LoggedSizes:
    """Buffers in MiB with two digits, as llama.cpp logs them."""

    k: float
    v: float
    compute: float
    output: float
    gpu_compute: float = 0.0


@dataclass(frozen=True)
class Load:
    """A decoder with some of its layers on a GPU, in llama.cpp's words, and a context for it."""

    context: ContextParams
    n_gpu_layers: int = 0
    n_attention_only: int = 0

    def placement(self, n_layer: int) -> Placement:
        return Placement.of(
            n_layer,
            self.n_gpu_layers,
            n_attention_only=self.n_attention_only,
            kv_on_gpu=self.context.offload_kqv,
        )

    def model_params(self, n_layer: int) -> ModelParams:
        first = n_layer + 1 - self.n_gpu_layers
        in_ram = mlp_tensors(range(first, first + self.n_attention_only))
        return ModelParams(n_gpu_layers=self.n_gpu_layers, cpu_tensors=in_ram)


@dataclass
class Errors:
    """KV and output in MiB as logged; compute as a share of what llama.cpp logs; weights in bytes."""

    weights: int = 0
    kv: float = 0.0
    output: float = 0.0
    compute_over: float = 0.0
    compute_under: float = 0.0
    n_contexts: int = 0
    n_exact: int = 0  # whose compute buffers are all as logged
    missing: float = 0.0  # MiB that one of the others was planned too small


def head_size(shape: Shape, architecture: str) -> int:
    """Width of a head: Qwen3 has 128 whatever the others are."""
    return 128 if architecture == "qwen3" else shape.hidden // shape.heads


def decoder_shapes(shape: Shape, architecture: str = "qwen2") -> list[TensorShape]:
    """The tensors of a Qwen2, Qwen3 or Llama decoder of ``shape``, under GGUF's names."""
    head = head_size(shape, architecture)
    q, kv = head * shape.heads, head * shape.kv_heads
    tensors = [TensorShape("token_embd.weight", (shape.vocabulary, shape.hidden))]
    for i in range(shape.layers):
        tensors.append(TensorShape(f"blk.{i}.attn_norm.weight", (shape.hidden,)))
        for name, rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
            tensors.append(TensorShape(f"blk.{i}.{name}.weight", (rows, shape.hidden)))
            if architecture == "qwen2":
                tensors.append(TensorShape(f"blk.{i}.{name}.bias", (rows,)))
        if architecture == "qwen3":
            tensors += [TensorShape(f"blk.{i}.attn_{name}_norm.weight", (head,)) for name in "qk"]
        tensors.append(TensorShape(f"blk.{i}.attn_output.weight", (shape.hidden, q)))
        tensors.append(TensorShape(f"blk.{i}.ffn_norm.weight", (shape.hidden,)))
        tensors.append(TensorShape(f"blk.{i}.ffn_gate.weight", (shape.mlp, shape.hidden)))
        tensors.append(TensorShape(f"blk.{i}.ffn_up.weight", (shape.mlp, shape.hidden)))
        tensors.append(TensorShape(f"blk.{i}.ffn_down.weight", (shape.hidden, shape.mlp)))
    tensors.append(TensorShape("output_norm.weight", (shape.hidden,)))
    if not shape.tied:
        tensors.append(TensorShape("output.weight", (shape.vocabulary, shape.hidden)))
    return tensors


def decoder_layout(shape: Shape, ftype: Ftype, architecture: str = "qwen2") -> GgufLayout:
    """A file without a vocabulary, which llama.cpp loads, and which is enough for sizes."""
    tensors = decoder_shapes(shape, architecture)
    numbers = {
        Keys.LLM.BLOCK_COUNT: u32(shape.layers),
        Keys.LLM.CONTEXT_LENGTH: u32(131072),
        Keys.LLM.EMBEDDING_LENGTH: u32(shape.hidden),
        Keys.LLM.FEED_FORWARD_LENGTH: u32(shape.mlp),
        Keys.LLM.VOCAB_SIZE: u32(shape.vocabulary),
        Keys.Attention.HEAD_COUNT: u32(shape.heads),
        Keys.Attention.HEAD_COUNT_KV: u32(shape.kv_heads),
        Keys.Attention.LAYERNORM_RMS_EPS: f32(1e-6),
        Keys.Rope.DIMENSION_COUNT: u32(head_size(shape, architecture)),
        Keys.Attention.KEY_LENGTH: u32(head_size(shape, architecture)),
        Keys.Attention.VALUE_LENGTH: u32(head_size(shape, architecture)),
    }
    metadata = {
        Keys.General.ARCHITECTURE: string(architecture),
        Keys.General.FILE_TYPE: u32(LLAMA_FTYPE[ftype]),
        Keys.Tokenizer.MODEL: string("none"),
        **{key.format(arch=architecture): value for key, value in numbers.items()},
    }
    return lay_out(metadata, tensors, choose_types(ftype, tensors, arch=architecture))


def write_sparse(path: Path, layout: GgufLayout) -> None:
    """The header, and a hole of the weights' size."""
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.n_bytes)


def simulate(path: Path, loads: Sequence[Load], gpu: Gpu | None = None) -> list[LoggedSizes]:
    """What llama.cpp logs for each load; in a process of its own, since llama.cpp may abort.

    Without a GPU the loads are simulated.
    """
    request = json.dumps([asdict(load) for load in loads])
    command = [sys.executable, "-m", "scripts.checks.simulated_load", "--child", str(path)]
    if gpu is not None:
        command += ["installed"] if gpu == "installed" else ["played", str(gpu.library), gpu.endpoint]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"llama.cpp ended the simulation: {done.stderr[-2000:]}")
    return [LoggedSizes(**raw) for raw in json.loads(done.stdout)]


def _child(path: Path, gpu: str = "", *card: str) -> None:
    import ctypes  # noqa: PLC0415 (of the child only, as llama.cpp)

    from acestep_gguf.llama.backend import backend  # noqa: PLC0415
    from acestep_gguf.llama.devices import cpu_overrides  # noqa: PLC0415
    from acestep_gguf.llama.library import lib  # noqa: PLC0415

    log = backend()
    log.lines = deque(maxlen=10_000)
    if card:
        library, endpoint = card
        use_card(Path(library), endpoint)
    n_layer = decoder_shape(read_gguf_header(path)).n_layer
    found: list[dict[str, Any]] = []
    for raw in json.load(sys.stdin):
        context = ContextParams(**raw.pop("context"))
        model_params = Load(context, **raw).model_params(n_layer)
        params = lib.llama_model_default_params()
        # A simulated load forgets which nodes llama.cpp ties to a device.
        params.no_alloc = not gpu
        params.load_mode = 0  # with mmap on, llama.cpp aborts a simulated load
        params.use_extra_bufts = False
        params.n_gpu_layers = model_params.n_gpu_layers
        overrides = cpu_overrides(model_params.cpu_tensors)
        params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            sys.exit("\n".join(log.lines))
        native = lib.llama_context_default_params()
        native.n_ctx, native.n_batch, native.n_ubatch = context.n_ctx, context.n_batch, context.n_ubatch
        native.n_outputs_max, native.offload_kqv = context.n_outputs_max, context.offload_kqv
        native.type_k, native.type_v = CACHE_TYPES[context.type_k], CACHE_TYPES[context.type_v]
        native.flash_attn_type = FLASH_ATTENTION[context.flash_attn]
        log.clear()
        pointer = lib.llama_init_from_model(model, native)
        if not pointer:
            sys.exit("\n".join(log.lines))
        found.append(asdict(logged_sizes("\n".join(log.lines))))
        lib.llama_free(pointer)
        lib.llama_model_free(model)
    json.dump(found, sys.stdout)


def logged_sizes(log: str) -> LoggedSizes:
    """Sizes in what llama.cpp logged while it made a context."""
    kv = KV_LINE.search(log)
    if kv is None:
        raise ValueError(f"llama.cpp logged no KV size: {log[-500:]}")
    buffers = {"compute": 0.0, "output": 0.0, "gpu_compute": 0.0}
    for device, kind, size in BUFFER_LINE.findall(log):
        name = kind if is_ram(device) else f"gpu_{kind}"
        if name in buffers:
            buffers[name] += float(size)
    return LoggedSizes(float(kv[1]), float(kv[2]), **buffers)


def is_ram(device: str) -> bool:
    """Whether buffers of this name lie in RAM: CPU, CPU_Mapped; CUDA_Host, which the GPU reads by itself."""
    return device.startswith("CPU") or device.endswith("_Host")


def whole_grid() -> Iterator[ContextParams]:
    """Every combination that llama.cpp accepts: a quantized V needs flash attention."""
    types: tuple[CacheType, ...] = ("f16", "q8_0", "q4_0")
    for n_ctx, n_ubatch, flash_attn in product(CONTEXTS, N_UBATCHES, ("on", "off")):
        for cache_type in types:
            type_v: CacheType = cache_type if flash_attn == "on" else "f16"
            yield ContextParams(
                n_ctx=n_ctx,
                n_batch=max(N_UBATCHES),
                n_ubatch=n_ubatch,
                type_k=cache_type,
                type_v=type_v,
                flash_attn=cast(FlashAttention, flash_attn),
            )


def random_loads(n_layer: int, count: int, seed: int) -> Iterator[Load]:
    """Settings of a GPU with some of the layers, in every combination that llama.cpp accepts."""
    chosen = random.Random(seed)
    for _ in range(count):
        n_gpu_layers = chosen.choice([0, 1, 2, n_layer - 1, n_layer, n_layer + 1, chosen.randint(0, n_layer)])
        flash_attn: FlashAttention = chosen.choice(["on", "on", "off"])
        cache_type: CacheType = chosen.choice(["f16", "q8_0", "q4_0"]) if flash_attn == "on" else "f16"
        context = ContextParams(
            n_ctx=chosen.choice([512, 4096, 8192, 32768]),
            n_ubatch=chosen.choice([16, 31, 32, 128, 512, 2048]),
            type_k=cache_type,
            type_v=cache_type,
            flash_attn=flash_attn,
            offload_kqv=chosen.random() < 0.5,
        )
        yield Load(context, n_gpu_layers, chosen.choice([0, 0, min(2, max(0, n_gpu_layers - 1))]))


def compare(
    shape: Shape,
    ftype: Ftype,
    loads: Sequence[Load],
    architecture: str = "qwen2",
    gpu: Gpu | None = None,
) -> Errors:
    """The largest differences between our formulas and llama.cpp's log."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.gguf"
        write_sparse(path, decoder_layout(shape, ftype, architecture))
        header = read_gguf_header(path)
        planned_shape, weights = decoder_shape(header), decoder_weights(header)
        logged = simulate(path, loads, gpu)
    errors = Errors(weights=n_bytes(header.tensors) - n_bytes(all_tensors(weights)))
    for load, sizes in zip(loads, logged, strict=True):
        params = load.context
        k, v = (
            planned_shape.n_layer * padded_n_ctx(params.n_ctx) * row_bytes(kind, planned_shape.n_embd_gqa)
            for kind in (params.type_k, params.type_v)
        )
        output = output_buffer_bytes(planned_shape, params)
        errors.kv = max(errors.kv, abs(round(k / MIB, 2) - sizes.k), abs(round(v / MIB, 2) - sizes.v))
        errors.output = max(errors.output, abs(round(output / MIB, 2) - sizes.output))
        placement = load.placement(planned_shape.n_layer) if gpu else None
        buffers = compute_buffer_bytes(planned_shape, weights, params, placement)
        exact = True
        for n_bytes_planned, size in zip(buffers, (sizes.compute, sizes.gpu_compute), strict=False):
            difference = n_bytes_planned / MIB - size
            if abs(difference) > LOG_STEP:
                exact = False
                errors.missing = max(errors.missing, -difference)
                over = difference / max(size, LOG_STEP)
                errors.compute_over = max(errors.compute_over, over)
                errors.compute_under = min(errors.compute_under, over)
        errors.n_exact += exact
        errors.n_contexts += 1
    return errors


def all_tensors(weights: DecoderWeights) -> list[TensorInfo]:
    layers = [tensor for layer in weights.layers for tensor in (*layer.attention, *layer.ffn)]
    output = [] if weights.is_tied else [weights.output]
    return [weights.embeddings, weights.output_norm, *output, *layers]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5b", "1.5b", "7b", "32b"])
    parser.add_argument("--ftypes", nargs="+", choices=FTYPES, default=["Q4_K_M", "Q5_K_M", "Q8_0"])
    parser.add_argument("--placements", type=int, metavar="N", help="random settings on a GPU")
    parser.add_argument(
        "--gpu", action="store_true", help="with --placements: the one that is there, not played"
    )
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        gpu: Gpu | None = None
        if arguments.placements:
            gpu = "installed" if arguments.gpu else stack.enter_context(play_card(TIB))
        _print_table(arguments, gpu)


def _print_table(arguments: argparse.Namespace, gpu: Gpu | None) -> None:
    print("| shape | decoder | contexts | weights | KV | output | compute buffer |")
    print("|---|---|---|---|---|---|---|")
    for shape, ftype in product(arguments.shapes, arguments.ftypes):
        loads = [Load(context) for context in whole_grid()]
        if gpu is not None:
            loads = list(random_loads(SHAPES[shape].layers, arguments.placements, arguments.seed))
        found = compare(SHAPES[shape], ftype, loads, gpu=gpu)
        print(
            f"| {shape} | {ftype} | {found.n_contexts} | {found.weights} B | {found.kv:.2f} MiB | "
            f"{found.output:.2f} MiB | {found.compute_under:+.2%} … {found.compute_over:+.2%} |",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(Path(sys.argv[2]), *sys.argv[3:])
    else:
        main()
