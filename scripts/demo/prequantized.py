"""What conversion makes of checkpoints that are quantized already: accuracy on the held-out questions.

python -m scripts.demo.prequantized acestep_gguf/demo --per-skill 100

Makes the quantized versions of the checkpoint, converts each to F16 (the quantized weights, dequantized)
and to Q4_K_M (quantized twice), and prints a Markdown table. bitsandbytes quantizes its versions itself; the
others are rounded to nearest, without calibration: they cost more than what is published in these formats.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from acestep_gguf.convert import convert_checkpoint
from scripts.demo.evaluate import Tally, bundle_scores
from tests.support.quantized_formats import Tensors, awq, fp8, gptq

Pack = Callable[[str, torch.Tensor], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Version:
    """``pack`` gives the tensors that stand for the weight ``name``; ``parts`` are those that it packs."""

    config: dict[str, Any]
    pack: Pack
    parts: tuple[str, ...] = ("language_model.",)


def by_rounding(make: Callable[[Any], Tensors]) -> Pack:
    def pack(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        made = make(weight.float().numpy())
        return {
            f"{name.removesuffix('weight')}{suffix}": tensor(suffix, array) for suffix, array in made.items()
        }

    def tensor(suffix: str, array: Any) -> torch.Tensor:
        converted = torch.from_numpy(np.ascontiguousarray(array))
        return converted.view(torch.float8_e4m3fn) if suffix == "weight" else converted

    return pack


def four_bit(quant_type: str, *, nested: bool) -> Pack:
    def pack(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        from bitsandbytes.functional import quantize_4bit  # noqa: PLC0415 - its import takes seconds

        packed, state = quantize_4bit(weight, quant_type=quant_type, compress_statistics=nested)
        described = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
        return {name: packed, **described}

    return pack


def eight_bit(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    from bitsandbytes.functional import int8_vectorwise_quant  # noqa: PLC0415

    numbers, scb, _ = int8_vectorwise_quant(weight.half())
    prefix = name.removesuffix("weight")
    return {name: numbers, f"{prefix}SCB": scb, f"{prefix}weight_format": torch.tensor(0, dtype=torch.uint8)}


# As transformers does it, bitsandbytes packs the tower and projector, too.
EVERYTHING = ("language_model.", "vision_tower.", "multi_modal_projector.")
VERSIONS = {
    "AWQ 4-bit, groups of 64": Version(
        {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True},
        by_rounding(lambda weight: awq(weight, 64)),
    ),
    "GPTQ 4-bit, groups of 64": Version(
        {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False},
        by_rounding(lambda weight: gptq(weight, 4, 64)),
    ),
    "GPTQ 8-bit, groups of 128": Version(
        {"quant_method": "gptq", "bits": 8, "group_size": 128, "sym": True, "desc_act": False},
        by_rounding(lambda weight: gptq(weight, 8, 128)),
    ),
    "bitsandbytes nf4, double quantization": Version(
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        four_bit("nf4", nested=True),
        EVERYTHING,
    ),
    "bitsandbytes fp4": Version(
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        four_bit("fp4", nested=False),
        EVERYTHING,
    ),
    "bitsandbytes 8-bit": Version(
        {"quant_method": "bitsandbytes", "load_in_8bit": True}, eight_bit, EVERYTHING
    ),
    "FP8, blocks of 128 x 128": Version(
        {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
        by_rounding(fp8),
    ),
}


def write_version(checkpoint: Path, folder: Path, version: Version) -> Path:
    """Write ``checkpoint`` with its linear layers packed into ``folder``."""
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors", "pictures"))
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        is_packed = is_linear(name) and name.startswith(version.parts)
        tensors |= version.pack(name, weight) if is_packed else {name: weight}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": version.config}, indent=2)
    )
    return folder


def is_linear(name: str) -> bool:
    """Layers' matrices; embeddings, output matrix and norms stay as they are in all of these formats."""
    return name.endswith((".weight",)) and any(part in name for part in ("proj.", "mlp.", "linear_"))


def accuracy(checkpoint: Path, work: Path, per_skill: int) -> dict[str, Tally]:
    """Questions answered right, by decoder."""
    bundle = work / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    convert_checkpoint(checkpoint, bundle, ["F16", "Q4_K_M"], name="Demo", vision=["float32"])
    return {quant: total(bundle_scores(bundle, per_skill, quant=quant)) for quant in ("F16", "Q4_K_M")}


def total(tallies: Mapping[str, Tally]) -> Tally:
    """All skills together, answers exact."""
    exact = [tally for skill, tally in tallies.items() if "by attribute" not in skill]
    return Tally(sum(tally.right for tally in exact), sum(tally.count for tally in exact))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--per-skill", type=int, default=100)
    parser.add_argument(
        "--version", action="append", choices=list(VERSIONS), help="may repeat; all by default"
    )
    arguments = parser.parse_args()
    print("| checkpoint | as F16 | as Q4_K_M |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        checkpoints = {"not quantized": arguments.checkpoint}
        for number, label in enumerate(arguments.version or VERSIONS):
            checkpoints[label] = write_version(arguments.checkpoint, work / str(number), VERSIONS[label])
        for label, checkpoint in checkpoints.items():
            scores = accuracy(checkpoint, work, arguments.per_skill)
            print(f"| {label} | {' | '.join(map(str, scores.values()))} |", flush=True)


if __name__ == "__main__":
    main()
