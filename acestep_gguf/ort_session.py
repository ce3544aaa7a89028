"""onnxruntime, set up the same for all graphs: threads, exact int8 products, and what it may raise."""

import os
from pathlib import Path
from typing import Final

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from acestep_gguf.cpus import VNNI, cpu_flags
from acestep_gguf.errors import UsageError
from acestep_gguf.options import TowerProvider

CPU_PROVIDER: Final = "CPUExecutionProvider"
# Providers of onnxruntime by our names, and the packages that have them.
PROVIDERS: Final[dict[TowerProvider, tuple[str, str]]] = {
    "cpu": (CPU_PROVIDER, "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime"),
    "qnn": ("QNNExecutionProvider", "onnxruntime-qnn"),
}
SEVERITY_ERROR: Final = 3

ORT_ERRORS: Final = (
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


def session_options(n_threads: int) -> ort.SessionOptions:
    """Settings of a session.

    x86 CPUs without VNNI add products of int8 in 16 bits, which overflow; there onnxruntime is told to take
    its slower, exact way. Other CPUs ignore that setting.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SEVERITY_ERROR
    if not cpu_flags() & VNNI:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def session(path: Path, options: ort.SessionOptions, provider: TowerProvider) -> ort.InferenceSession:
    """The graph in ``path`` on a provider, with the CPU for what that cannot compute.

    Raises:
        UsageError: onnxruntime does not have the provider, or cannot start it.
        ORT_ERRORS: what onnxruntime says of the graph.
    """
    name, package = PROVIDERS[provider]
    if name not in ort.get_available_providers():
        raise UsageError(
            f"vision_provider is {provider}, which this onnxruntime does not have: "
            f"`pip install {package}` in the place of onnxruntime.",
            settings=["vision_provider"],
        )
    wanted = list(dict.fromkeys([name, CPU_PROVIDER]))
    opened = ort.InferenceSession(os.fspath(path), options, providers=wanted)
    if opened.get_providers()[0] != name:  # it goes on without one whose libraries it does not find
        raise UsageError(
            f"onnxruntime cannot start its {provider} provider: check its driver and libraries, or leave "
            "vision_provider out.",
            settings=["vision_provider"],
        )
    return opened


def first_line(error: Exception) -> str:
    """What onnxruntime says of an error, without its stack."""
    return str(error).strip().partition("\n")[0]
