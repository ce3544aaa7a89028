"""What the ONNX file of a vision tower must be: what bundle.json says, weights in its own data file."""

from pathlib import Path

from acestep_gguf.bundle import ImageSpec, VisionFile, check_file
from acestep_gguf.errors import BundleError
from acestep_gguf.onnx_file import FLOAT, OnnxFile, Value, read_onnx


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
    # The first dimension counts pictures and has a name, not a number.
    pixel_values = (3, image.size.height, image.size.width)
    image_embeds = (image.n_image_tokens, image.n_embd)
    if not (_is_one(onnx.inputs, pixel_values) and _is_one(onnx.outputs, image_embeds)):
        raise BundleError(
            f"{onnx.path} does not take and give what bundle.json says: convert the checkpoint again."
        )
    _check_external_data(onnx, record)


def _is_one(values: tuple[Value, ...], shape: tuple[int, ...]) -> bool:
    return [(value.data_type, value.shape[1:]) for value in values] == [(FLOAT, shape)] and isinstance(
        values[0].shape[0], str
    )


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
