"""The vision tower and projector in onnxruntime: pixel_values in, image embeds out."""

import os
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from acestep_gguf.bundle import Bundle
from acestep_gguf.errors import BundleError, DecodeError
from acestep_gguf.vision_info import check_vision_file

FloatArray = npt.NDArray[np.float32]

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
        path = check_vision_file(folder, vision.files[vision.default], image)
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


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
