"""onnxruntime, set up the same for all graphs: threads, exact int8 products, and what it may raise."""

from typing import Final

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from acestep_gguf.cpus import cpu_flags

SEVERITY_ERROR: Final = 3
VNNI: Final = frozenset({"avx512_vnni", "avx_vnni"})

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


def first_line(error: Exception) -> str:
    """What onnxruntime says of an error, without its stack."""
    return str(error).strip().partition("\n")[0]
