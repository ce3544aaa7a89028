"""Which builds of onnxruntime are installed, found without loading one; all are imported by one name."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

CUDA_BUILD: Final = "onnxruntime-gpu"
BUILDS: Final = ("onnxruntime", CUDA_BUILD, "onnxruntime-openvino", "onnxruntime-qnn")


@cache
def installed_builds() -> dict[str, str]:
    """Versions of the installed builds by their names."""
    found = {}
    for name in BUILDS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def ort_version() -> str:
    """What tells one onnxruntime from another: other builds and versions may compute other numbers."""
    return ", ".join(f"{name} {number}" for name, number in installed_builds().items())
