"""Write a bundle of a true shape with random weights, straight to blocks: a 32B decoder in about a minute.

    python -m scripts.synthetic.bundle --shape 32b /tmp/bundle-32b
    python -m scripts.synthetic.bundle --shape 0.5b -q Q8_0 /tmp/bundle-0.5b

The decoder is Qwen2.5's of that size behind a CLIP ViT-H/14 tower at 448 px. Each matrix repeats 64 rows of
random weights, quantized once; it answers nonsense, at the speed and in the memory of the true model. Disk:
the decoder (19.9 GB for 32b in Q4_K_M), 2.5 GB for the tower, and half of that for the tower's checkpoint,
which is removed again.
"""

import argparse
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from acestep_gguf.bundle.names import FTYPES, PREFILL_FILE, DecoderFtype, Ftype, VisionPrecision
from acestep_gguf.bundle.schema import (
    SCHEMA_VERSION,
    Bundle,
    DecoderFile,
    Decoders,
    FileRecord,
    PrefillFile,
    Vision,
    VisionFile,
    min_reader_version,
)
from acestep_gguf.convert.conversion_plan import ConversionPlan, ConversionRequest, plan_bundle
from acestep_gguf.convert.int8_layers.files import DATA_FILE, PlannedPrefill
from acestep_gguf.convert.model import open_model
from acestep_gguf.convert.tower.files import PlannedTower
from acestep_gguf.cpus import usable_cpus
from acestep_gguf.quantize.ggml import quantize_rows, row_size
from acestep_gguf.quantize.gguf_layout import PlacedTensor
from acestep_gguf.quantize.one_pass import GgufOutput, TensorSource, write_ggufs
from acestep_gguf.quantize.staging import Staging
from scripts.synthetic.checkpoint import (
    CHAT_TEMPLATE,
    SHAPES,
    VISION_SHAPES,
    Rows,
    Shape,
    VisionShape,
    decoder_tensors,
    llava_config,
    preprocessor_config,
    tokenizer_json,
    vision_tensors,
    write_json,
    write_safetensors,
)

PATTERN_ROWS = 64


@dataclass(frozen=True)
class RandomBlocks:
    """A tensor that repeats PATTERN_ROWS quantized rows of standard deviation 1/sqrt(row length)."""

    shape: tuple[int, ...]
    qtype: GGMLQuantizationType
    blocks: NDArray[np.uint8]

    def read_blocks(self, start: int, stop: int) -> NDArray[np.uint8]:
        rows: NDArray[np.uint8] = self.blocks[np.arange(start, stop) % len(self.blocks)]
        return rows

    def read_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        raise NotImplementedError("every file wants the type that the blocks have")


def random_blocks(tensor: PlacedTensor, seed: int) -> RandomBlocks:
    """Norms are ones, biases small, matrices random."""
    row_length = tensor.shape[-1]
    if len(tensor.shape) == 1:
        rows = np.full((1, row_length), 1.0 if tensor.name.endswith("weight") else 0.01, np.float32)
    else:
        generator = np.random.default_rng(seed)
        rows = generator.standard_normal((PATTERN_ROWS, row_length), np.float32) / math.sqrt(row_length)
    rows = np.ascontiguousarray(rows, np.float32)
    if tensor.qtype == GGMLQuantizationType.F32:
        blocks = rows.view(np.uint8).reshape(len(rows), -1)
    else:
        quantized = quantize_rows(rows, tensor.qtype)
        assert quantized is not None
        blocks = quantized
    assert blocks.shape[1] == row_size(tensor.qtype, row_length)
    return RandomBlocks(tensor.shape, tensor.qtype, blocks)


def write_checkpoint(folder: Path, shape: Shape, vision: VisionShape) -> None:
    """A checkpoint whose tower is random and whose decoder is a hole: it takes the tower's disk only."""
    write_json(folder / "config.json", llava_config(shape, vision))
    write_json(folder / "preprocessor_config.json", preprocessor_config(vision))
    write_json(folder / "tokenizer.json", tokenizer_json(None))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": CHAT_TEMPLATE,
        },
    )
    parts = {
        "model-tower.safetensors": (list(vision_tensors(vision, shape.hidden)), False),
        "model-decoder.safetensors": (list(decoder_tensors(shape, "language_model.")), True),
    }
    weight_map = {}
    for file, (tensors, sparse) in parts.items():
        write_safetensors(folder / file, tensors, Rows(), sparse=sparse)
        weight_map.update(dict.fromkeys((name for name, _ in tensors), file))
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_bundle(
    checkpoint: Path,
    out: Path,
    ftypes: Sequence[Ftype],
    precisions: Sequence[VisionPrecision] = ("float32",),
    *,
    name: str,
    sparse: bool = False,
    sparse_towers: bool = False,
    prefill: bool = False,
) -> None:
    """What conversion would write, but with random blocks, or holes, instead of the checkpoint's decoder.

    With ``sparse_towers``, their weights are holes, too; int8 layers, with ``prefill``, are always holes.
    """
    request = ConversionRequest(ftypes=ftypes, name=name, vision=precisions, prefill=prefill)
    with open_model(checkpoint, None) as model:
        plan = plan_bundle(model, out, request)
        with Staging(out) as staging:
            decoders: dict[DecoderFtype, DecoderFile] = {
                ftype: write_decoder(staging, plan, ftype, sparse=sparse) for ftype in ftypes
            }
            towers = {
                precision: write_tower(staging, plan, tower, sparse=sparse_towers)
                for precision, tower in plan.towers.items()
            }
            staging.publish()
            Bundle(
                schema_version=SCHEMA_VERSION,
                min_reader_version=min_reader_version(plan.model.image, plan.model.prompt),
                name=name,
                source=plan.model.source,
                decoders=Decoders(default=ftypes[0], files=decoders),
                vision=Vision(default=next(iter(towers)), files=towers),
                image=plan.model.image,
                prompt=plan.model.prompt,
                prefill=write_int8_layers(out, plan.prefill) if plan.prefill else None,
            ).write(out)


def write_decoder(staging: Staging, plan: ConversionPlan, ftype: Ftype, *, sparse: bool) -> DecoderFile:
    planned = plan.decoders[ftype]
    bits_per_weight = round(planned.layout.bits_per_weight, 3)
    if sparse:
        hole = write_hole(plan.output.path / planned.file, planned.layout.header, planned.layout.n_bytes)
        return DecoderFile(
            file=hole.file, bytes=hole.bytes, sha256=hole.sha256, bits_per_weight=bits_per_weight
        )
    placed = planned.layout.tensors
    sources: list[tuple[str, TensorSource]] = [
        (tensor.name, random_blocks(tensor, seed)) for seed, tensor in enumerate(placed)
    ]
    file = staging.create(planned.file)
    write_ggufs(sources, [GgufOutput(planned.layout, file)], n_threads=usable_cpus())
    return DecoderFile(
        file=planned.file, bytes=file.n_bytes, sha256=file.sha256, bits_per_weight=bits_per_weight
    )


def write_tower(staging: Staging, plan: ConversionPlan, tower: PlannedTower, *, sparse: bool) -> VisionFile:
    """Both files; with ``sparse``, holes of the size that is planned."""
    if not sparse:
        return tower.write(staging, plan.n_threads, on_spared=lambda *_: None)
    graph = write_hole(plan.output.path / tower.name, tower.model, len(tower.model))
    return VisionFile(
        file=graph.file,
        bytes=graph.bytes,
        sha256=graph.sha256,
        data=write_hole(plan.output.path / tower.data_name, b"", tower.data_bytes),
        cosine_to_float32=1.0,
    )


def write_int8_layers(folder: Path, planned: PlannedPrefill) -> PrefillFile:
    """The graph, and a hole for the weights, which are zeros then."""
    graph = write_hole(folder / PREFILL_FILE, planned.model, len(planned.model))
    return PrefillFile(
        file=graph.file,
        bytes=graph.bytes,
        sha256=graph.sha256,
        data=write_hole(folder / DATA_FILE, b"", planned.data_bytes),
        n_layers=planned.n_layers,
    )


def write_hole(path: Path, head: bytes, n_bytes: int) -> FileRecord:
    """A file of ``n_bytes`` that begins with ``head`` and reads as zeros behind it."""
    path.write_bytes(head)
    os.truncate(path, n_bytes)
    return FileRecord(file=path.name, bytes=n_bytes, sha256="0" * 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("-q", "--quant", choices=FTYPES, action="append", help="default: Q4_K_M")
    parser.add_argument("--vision", choices=VISION_SHAPES, default="vit-h-14-448")
    parser.add_argument(
        "--precision", action="append", help="of the tower, may be repeated; default: float32"
    )
    parser.add_argument("--prefill", action="store_true", help="int8 layers, too, of zeros in a hole")
    parser.add_argument("--sparse", action="store_true", help="a decoder of holes: to plan for, not to run")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=arguments.out.parent, prefix="checkpoint-") as folder:
        write_checkpoint(Path(folder), SHAPES[arguments.shape], VISION_SHAPES[arguments.vision])
        write_bundle(
            Path(folder),
            arguments.out,
            arguments.quant or ["Q4_K_M"],
            arguments.precision or ["float32"],
            name=f"Synthetic-{arguments.shape.upper()}",
            sparse=arguments.sparse,
            prefill=arguments.prefill,
        )


if __name__ == "__main__":
    main()
