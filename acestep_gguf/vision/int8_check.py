"""Whether a quantized tower gives the right numbers on this machine, found out once.

onnxruntime multiplies int8 differently on each kind of CPU, and some of these ways overflow (onnxruntime
#12088). So a bundle holds what float32 makes of a reference picture, and an int8 tower has to come about as
close to it as it did when the bundle was made.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle.image_spec import ImageSpec
from acestep_gguf.bundle.names import BUNDLE_FILE, VisionPrecision
from acestep_gguf.bundle.schema import Bundle, ReferenceEmbeds, VisionFile
from acestep_gguf.cpus import usable_cpus
from acestep_gguf.errors import BundleError
from acestep_gguf.ort_builds import ort_version
from acestep_gguf.storage.verdict import Verdict
from acestep_gguf.vision.embeds import cosines

FloatArray = npt.NDArray[np.float32]

# How far from 1 the cosine may be: FACTOR times what it was for the worst token at conversion, and MARGIN.
FACTOR, MARGIN = 2.0, 1e-3
HASH_MULTIPLIER: Final = 2654435761  # Knuth's, for noise that is the same everywhere


def vision_precision(
    folder: Path, bundle: Bundle, wanted: VisionPrecision | None = None, *, n_threads: int | None = None
) -> VisionPrecision:
    """The precision of the tower that this machine should run: ``wanted``, by default the bundle's default.

    The first time on a machine, an int8 tower is loaded and run once. If its numbers are wrong, a UserWarning
    says that float32 takes its place, then and every time after.

    Raises:
        PromptError: the bundle has no tower.
        BundleError: it has no tower of this precision, or that is damaged, or wrong without one in float32.
        DecodeError: onnxruntime failed.
    """
    vision, _ = bundle.tower()
    precision = wanted or vision.default
    record = bundle.vision_file(precision)
    if record.reference is None:
        return precision
    reference, threads = record.reference, n_threads or usable_cpus()
    if _verdict(folder, precision).found_out(lambda: _check(folder, bundle, precision, reference, threads)):
        return precision
    problem = f"{folder / record.file} gives wrong numbers with this CPU and {ort_version()}"
    if "float32" not in vision.files:
        raise BundleError(
            f"{problem}: add the float32 tower, `convert` with vision=float32.", settings=["vision"]
        )
    warnings.warn(f"{problem}: the float32 tower takes its place.", stacklevel=2)
    return "float32"


def known_precision(folder: Path, bundle: Bundle, wanted: VisionPrecision | None = None) -> VisionPrecision:
    """What ``vision_precision`` says, as far as this machine has found it out; nothing is loaded.

    Raises:
        PromptError: the bundle has no tower.
        BundleError: it has no tower of this precision.
    """
    vision, _ = bundle.tower()
    precision = wanted or vision.default
    if bundle.vision_file(precision).reference is None or "float32" not in vision.files:
        return precision
    return "float32" if _verdict(folder, precision).known() is False else precision


def reference_pixel_values(image: ImageSpec) -> FloatArray:
    """The reference picture, the mean of smooth slopes and of noise, float32 [1, 3, H, W]."""
    shape = 3, image.size.height, image.size.width
    noise = (np.arange(np.prod(shape), dtype=np.uint64) * HASH_MULTIPLIER % 2**32 / 2**32).reshape(shape)
    rows = np.arange(shape[1])[:, np.newaxis] / shape[1]
    columns = np.arange(shape[2]) / shape[2]
    slopes = np.stack([rows + 0 * columns, columns + 0 * rows, (rows + columns) / 2])
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (image.mean, image.std))
    pixels: FloatArray = ((slopes + noise) / 2 - mean) / std
    return pixels[np.newaxis].astype(np.float32)


def reference_embeds(embeds: FloatArray) -> ReferenceEmbeds:
    """What is recorded of float32's image embeds [n_image_tokens, n_embd] of the reference picture."""
    token = len(embeds) // 2
    direction = embeds[token] / max(float(np.linalg.norm(embeds[token])), 1e-30)
    return ReferenceEmbeds(token=token, direction=direction.astype("<f2").tobytes())


def is_right(embeds: FloatArray, reference: ReferenceEmbeds, record: VisionFile) -> bool:
    """Whether embeds of the reference picture [n_image_tokens, n_embd] come as close as they should."""
    direction = np.frombuffer(reference.direction, "<f2").astype(np.float32)
    if reference.token >= len(embeds) or direction.shape != embeds.shape[1:]:
        raise BundleError(f"the reference for {record.file} does not fit: convert the checkpoint again.")
    worst = record.min_cosine_to_float32 if record.min_cosine_to_float32 is not None else 1.0
    cosine = cosines(embeds[reference.token][np.newaxis], direction[np.newaxis])[0]
    return bool(cosine >= 1 - FACTOR * (1 - worst) - MARGIN)


def _check(
    folder: Path, bundle: Bundle, precision: VisionPrecision, reference: ReferenceEmbeds, n_threads: int
) -> bool:
    from acestep_gguf.vision.tower import VisionTower  # noqa: PLC0415 (a check that was done needs no onnxruntime)

    _, image = bundle.tower()
    tower = VisionTower(folder, bundle, precision, n_threads=n_threads)
    embeds = tower.encode(reference_pixel_values(image)).embeds
    return is_right(embeds, reference, bundle.vision_file(precision))


def _verdict(folder: Path, precision: VisionPrecision) -> Verdict:
    bundle = hashlib.sha256((folder / BUNDLE_FILE).read_bytes()).hexdigest()
    return Verdict("vision", [bundle, precision, ort_version()])
