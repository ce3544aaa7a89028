"""What the ONNX file of a vision tower must be: what bundle.json says, weights in its own data file."""

from pathlib import Path
from typing import Final

from acestep_gguf.bundle.image_spec import SIZES_OF_THEIR_OWN, AnySize, ImageSpec, PinpointTiles
from acestep_gguf.bundle.onnx_file import FLOAT, OnnxFile, Value, read_onnx
from acestep_gguf.bundle.schema import VisionFile, check_file
from acestep_gguf.errors import BundleError

# Names in the graph.
PIXEL_VALUES: Final = "pixel_values"
IMAGE_EMBEDS: Final = "image_embeds"
PATCH_ATTENTION: Final = "patch_attention"
IMAGE_NEWLINE: Final = "image_newline"

Shapes = dict[str, tuple[int | str | None, ...]]


def check_vision_file(folder: Path, record: VisionFile, image: ImageSpec) -> Path:
    """Path of the tower's ONNX file in ``folder``, after it and its data file were checked, but for hashes.

    Raises:
        BundleError: one of them is missing, of a wrong size, damaged, or not what bundle.json says.
    """
    path = check_file(folder, record)
    check_file(folder, record.data)
    check_graph(read_onnx(path), record, image)
    return path


def check_graph(onnx: OnnxFile, record: VisionFile, image: ImageSpec) -> None:
    """Check that the tower is for such pictures, and reads weights from no file but its own.

    Raises:
        BundleError: it is not.
    """
    n_tokens = image.n_image_tokens
    pixels, tokens = pixel_dims(image), token_dim(image)
    takes: Shapes = {PIXEL_VALUES: (3, *pixels)}
    gives: Shapes = {IMAGE_EMBEDS: (tokens, image.n_embd)}
    has_newline = isinstance(image.tiles, PinpointTiles | AnySize)
    newline = {IMAGE_NEWLINE: (image.n_embd,)} if has_newline else {}
    # All tokens are patches, or CLS is among them; towers of schema version 1 have no attention to give.
    with_attention = [gives | {PATCH_ATTENTION: (n_patches,)} for n_patches in (n_tokens, n_tokens - 1)]
    ends = [value for value in onnx.outputs if value.name == IMAGE_NEWLINE]
    given = _shapes(tuple(value for value in onnx.outputs if value not in ends))
    if (
        _shapes(onnx.inputs) != takes
        or given not in (gives, *with_attention)
        or {value.name: value.shape for value in ends if value.data_type == FLOAT} != newline
        or len(ends) != len(newline)
    ):
        raise BundleError(
            f"{onnx.path} does not take and give what bundle.json says: convert the checkpoint again."
        )
    _check_external_data(onnx, record)


def pixel_dims(image: ImageSpec) -> tuple[int | str, int | str]:
    """Height and width that the tower takes: names where they are any."""
    if isinstance(image.tiles, SIZES_OF_THEIR_OWN):
        return "height", "width"
    return image.size.height, image.size.width


def token_dim(image: ImageSpec) -> int | str:
    """Tokens that the tower gives."""
    return "n_tokens" if isinstance(image.tiles, AnySize) else image.n_image_tokens


def _shapes(values: tuple[Value, ...]) -> Shapes | None:
    """Names and shapes of float32 values but for the first dimension, a name: it counts pictures."""
    shapes = {value.name: value.shape[1:] for value in values if value.data_type == FLOAT}
    has_batches = all(value.shape and isinstance(value.shape[0], str) for value in values)
    return shapes if has_batches and len(shapes) == len(values) else None


def _check_external_data(onnx: OnnxFile, record: VisionFile) -> None:
    outside = [weight.external for weight in onnx.initializers if weight.external]
    if not outside or any(data.location != record.data.file for data in outside):
        raise BundleError(
            f"{onnx.path} reads weights from another file than {record.data.file}: do not trust it."
        )
    end = 0
    for data in sorted(outside, key=lambda data: (data.offset, data.length)):
        if data.offset < end or data.offset + data.length > record.data.bytes:
            raise BundleError(
                f"{onnx.path} is damaged (its weights overlap or are not within {record.data.file}): "
                "convert the checkpoint again, or copy the file again."
            )
        end = data.offset + data.length
