"""Whether another provider of onnxruntime gives the CPU's numbers on this machine, found out once."""

import hashlib
import warnings
from pathlib import Path
from typing import Final

from acestep_gguf.bundle.names import BUNDLE_FILE
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.llama.devices import gpu_devices
from acestep_gguf.options import TowerProvider
from acestep_gguf.ort_builds import ort_version
from acestep_gguf.storage.verdict import Verdict
from acestep_gguf.vision.embeds import cosines
from acestep_gguf.vision.int8_check import reference_pixel_values

# Least cosine of a token's embeds to the CPU's; GPUs round products of float32 to TF32 or float16.
LEAST_COSINE: Final = 0.999


def right_provider(folder: Path, bundle: Bundle, provider: TowerProvider, *, n_threads: int) -> TowerProvider:
    """``provider``, or "cpu" with a UserWarning where its image embeds are not those of the CPU.

    The first time on a machine, the float32 tower encodes a reference picture with both.

    Raises:
        PromptError: the bundle has no tower.
        UsageError: onnxruntime does not have the provider, or cannot start it.
        BundleError: the bundle has no float32 tower, or that is damaged.
        DecodeError: onnxruntime failed.
    """
    if provider == "cpu":
        return provider
    gpus = [name for name, _ in gpu_devices()]
    facts = [hashlib.sha256((folder / BUNDLE_FILE).read_bytes()).hexdigest(), provider, ort_version(), gpus]
    if Verdict("vision", facts).found_out(lambda: _check(folder, bundle, provider, n_threads)):
        return provider
    warnings.warn(
        f"onnxruntime's {provider} provider gives other image embeds than the CPU: the CPU takes its place.",
        stacklevel=2,
    )
    return "cpu"


def _check(folder: Path, bundle: Bundle, provider: TowerProvider, n_threads: int) -> bool:
    from acestep_gguf.vision.tower import VisionTower  # noqa: PLC0415 (a check that was done needs no onnxruntime)

    _, image = bundle.tower()
    ours, cpus = (
        VisionTower(folder, bundle, "float32", n_threads=n_threads, provider=one)
        .encode(reference_pixel_values(image))
        .embeds
        for one in (provider, "cpu")
    )
    return bool(cosines(ours, cpus).min() >= LEAST_COSINE)
