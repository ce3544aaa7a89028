"""The vision tower and projector in onnxruntime: pixel_values in, image embeds out."""

import os
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from acestep_gguf.bundle import Bundle, VisionFile, check_file
from acestep_gguf.errors import BundleError, DecodeError

FloatArray = npt.NDArray[np.float32]

MAX_ONNX_BYTES: Final = 64 * 2**20  # the graph alone; its weights lie in the external data file
SEVERITY_ERROR: Final = 3

_ORT_ERRORS: Final = (
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.ModelLoaded,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    OSError,
)


class VisionTower:
    """The tower of a bundle, loaded.

    Raises:
        PromptError: the bundle has none.
        BundleError: its files are missing, damaged, or not what bundle.json says.
    """

    def __init__(self, folder: Path, bundle: Bundle, *, n_threads: int) -> None:
        vision, image = bundle.tower()
        record = vision.files[vision.default]
        path = check_file(folder, record)
        check_file(folder, record.data)
        _check_external_data(path, record)
        options = ort.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = SEVERITY_ERROR
        try:
            self._session = ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except _ORT_ERRORS as error:
            raise BundleError(
                f"onnxruntime cannot load {path} ({_first_line(error)}): convert again."
            ) from error
        self._input_shape = (1, 3, image.size.height, image.size.width)
        self._output_shape = (1, image.n_image_tokens, image.n_embd)
        self._check_signature(path)
        self._input_name = self._session.get_inputs()[0].name

    def encode(self, pixel_values: FloatArray) -> FloatArray:
        """Image embeds, float32 [n_image_tokens, n_embd], of one picture, float32 [1, 3, H, W].

        One picture a call: what a picture becomes must not depend on what else is encoded.

        Raises:
            DecodeError: wrong shape, or the tower gave numbers that are not finite.
        """
        if pixel_values.dtype != np.float32 or pixel_values.shape != self._input_shape:
            shape = f"{pixel_values.dtype} {pixel_values.shape}"
            raise DecodeError(f"pixel_values are {shape}, this tower takes float32 {self._input_shape}.")
        try:
            (embeds,) = self._session.run(None, {self._input_name: pixel_values})
        except _ORT_ERRORS as error:
            raise DecodeError(f"onnxruntime failed on a picture ({_first_line(error)}).") from error
        if embeds.dtype != np.float32 or embeds.shape != self._output_shape or not np.isfinite(embeds).all():
            raise DecodeError("the vision tower gave no sound image embeds: its weights are damaged.")
        image_embeds: FloatArray = embeds[0]
        return image_embeds

    def _check_signature(self, path: Path) -> None:
        # The first dimension counts pictures and has a name, not a number.
        expected = [(1, "tensor(float)", [*shape[1:]]) for shape in (self._input_shape, self._output_shape)]
        sides = (self._session.get_inputs(), self._session.get_outputs())
        if [(len(side), side[0].type, side[0].shape[1:]) for side in sides] != expected:
            raise BundleError(
                f"{path} does not take and give what bundle.json says: convert the checkpoint again."
            )


def _check_external_data(path: Path, record: VisionFile) -> None:
    """Check that the graph reads weights from no file but the one that the bundle records.

    In protobuf the name of the file stands after the key "location" (StringStringEntryProto of onnx.proto),
    so every such word in the file must be followed by the recorded name.
    """
    if record.bytes > MAX_ONNX_BYTES:
        raise BundleError(f"{path} is too large for a graph ({record.bytes} bytes): convert it again.")
    graph = path.read_bytes()
    name = record.data.file.encode()
    entry = b"\x0a\x08location\x12" + _varint(len(name)) + name
    if graph.count(b"location") != graph.count(entry) or entry not in graph:
        raise BundleError(f"{path} reads weights from another file than {record.data.file}: do not trust it.")


def _varint(number: int) -> bytes:
    """A protobuf varint of a number below 2**14."""
    return bytes([number]) if number < 128 else bytes([number & 127 | 128, number >> 7])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
