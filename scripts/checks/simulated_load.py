"""Ask llama.cpp what a decoder would take, without loading one: the judge of acestep_gguf/plan.

    python -m scripts.checks.simulated_load --shapes 0.5b 32b --ftypes Q4_K_M

llama.cpp has no C API for the sizes of its buffers, so they are read from the lines that it logs, here and
nowhere else. A simulated load (``no_alloc``) needs a file of the true length; ours is a header and a hole.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

from gguf import Keys

from acestep_gguf.bundle.gguf_header import TensorInfo, read_gguf_header
from acestep_gguf.bundle.names import FTYPES, LLAMA_FTYPE, Ftype
from acestep_gguf.llama.params import CACHE_TYPES, FLASH_ATTENTION, ContextParams
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
from acestep_gguf.quantize.gguf_layout import GgufLayout, f32, lay_out, string, u32
from acestep_gguf.quantize.recipes import TensorShape, choose_types
from scripts.synthetic.checkpoint import SHAPES, Shape

MIB = 2**20
LOG_STEP = 0.01  # MiB: llama.cpp logs two digits
CONTEXTS = (2048, 8192, 32768, 131072)
N_UBATCHES = (128, 512, 2048)
# The KV line is the one that holds in a simulated load, too.
KV_LINE = re.compile(r"llama_kv_cache: size = .*K \(\w+\): +([\d.]+) MiB, V \(\w+\): +([\d.]+) MiB")
BUFFER_LINE = re.compile(r"(\w+) +(compute|output|KV|model) buffer size = +([\d.]+) MiB")


@dataclass(frozen=True)
class LoggedSizes:
    """Buffers in MiB with two digits, as llama.cpp logs them."""

    k: float
    v: float
    compute: float
    output: float


@dataclass
class Errors:
    """KV and output in MiB as logged; compute as a share of what llama.cpp logs; weights in bytes."""

    weights: int = 0
    kv: float = 0.0
    output: float = 0.0
    compute_over: float = 0.0
    compute_under: float = 0.0
    n_contexts: int = 0


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


def simulate(path: Path, contexts: Sequence[ContextParams]) -> list[LoggedSizes]:
    """What llama.cpp logs for each context; in a process of its own, since llama.cpp may abort."""
    request = json.dumps([asdict(context) for context in contexts])
    command = [sys.executable, "-m", "scripts.checks.simulated_load", "--child", str(path)]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"llama.cpp ended the simulation: {done.stderr[-2000:]}")
    return [LoggedSizes(**raw) for raw in json.loads(done.stdout)]


def _child(path: Path) -> None:
    import ctypes  # noqa: PLC0415 (of the child only, as llama_cpp)

    from llama_cpp import llama_cpp as lib  # noqa: PLC0415

    lines: list[str] = []

    def write(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        lines.append(text.decode("utf-8", "replace"))

    callback = lib.llama_log_callback(write)  # ctypes does not keep it alive
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.no_alloc = True
    params.load_mode = 0  # with mmap on, llama.cpp aborts
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        sys.exit("".join(lines))
    found: list[dict[str, Any]] = []
    for raw in json.load(sys.stdin):
        context = ContextParams(**raw)
        native = lib.llama_context_default_params()
        native.n_ctx, native.n_batch, native.n_ubatch = context.n_ctx, context.n_batch, context.n_ubatch
        native.n_outputs_max = context.n_outputs_max
        native.type_k, native.type_v = CACHE_TYPES[context.type_k], CACHE_TYPES[context.type_v]
        native.flash_attn_type = FLASH_ATTENTION[context.flash_attn]
        lines.clear()
        pointer = lib.llama_init_from_model(model, native)
        if not pointer:
            sys.exit("".join(lines))
        found.append(asdict(logged_sizes("".join(lines))))
        lib.llama_free(pointer)
    json.dump(found, sys.stdout)


def logged_sizes(log: str) -> LoggedSizes:
    """Sizes in what llama.cpp logged while it made a context."""
    kv = KV_LINE.search(log)
    if kv is None:
        raise ValueError(f"llama.cpp logged no KV size: {log[-500:]}")
    buffers = {"compute": 0.0, "output": 0.0}
    for _device, kind, size in BUFFER_LINE.findall(log):
        if kind in buffers:
            buffers[kind] += float(size)
    return LoggedSizes(float(kv[1]), float(kv[2]), **buffers)


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


def compare(
    shape: Shape, ftype: Ftype, contexts: Sequence[ContextParams], architecture: str = "qwen2"
) -> Errors:
    """The largest differences between our formulas and llama.cpp's log."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.gguf"
        write_sparse(path, decoder_layout(shape, ftype, architecture))
        header = read_gguf_header(path)
        planned_shape, weights = decoder_shape(header), decoder_weights(header)
        logged = simulate(path, contexts)
    errors = Errors(weights=n_bytes(header.tensors) - n_bytes(all_tensors(weights)))
    for params, sizes in zip(contexts, logged, strict=True):
        k, v = (
            planned_shape.n_layer * padded_n_ctx(params.n_ctx) * row_bytes(kind, planned_shape.n_embd_gqa)
            for kind in (params.type_k, params.type_v)
        )
        (compute,) = compute_buffer_bytes(planned_shape, weights, params)
        output = output_buffer_bytes(planned_shape, params)
        errors.kv = max(errors.kv, abs(round(k / MIB, 2) - sizes.k), abs(round(v / MIB, 2) - sizes.v))
        errors.output = max(errors.output, abs(round(output / MIB, 2) - sizes.output))
        difference = compute / MIB - sizes.compute
        over = difference / sizes.compute if abs(difference) > LOG_STEP else 0.0
        errors.compute_over, errors.compute_under = (
            max(errors.compute_over, over),
            min(errors.compute_under, over),
        )
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
    arguments = parser.parse_args()
    contexts = list(whole_grid())
    print("| shape | decoder | contexts | weights | KV | output | compute buffer |")
    print("|---|---|---|---|---|---|---|")
    for shape, ftype in product(arguments.shapes, arguments.ftypes):
        found = compare(SHAPES[shape], ftype, contexts)
        print(
            f"| {shape} | {ftype} | {found.n_contexts} | {found.weights} B | {found.kv:.2f} MiB | "
            f"{found.output:.2f} MiB | {found.compute_under:+.2%} … {found.compute_over:+.2%} |",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(Path(sys.argv[2]))
    else:
        main()
