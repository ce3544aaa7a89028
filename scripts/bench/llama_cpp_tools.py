"""Build llama.cpp's own tools, as peers to compare with, from the source package of llama-cpp-python.

That package holds the whole of llama.cpp at the very version that the runtime uses, so both sides of a
comparison share their kernels. Source and build are kept in a cache folder: the first call takes minutes.
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import platformdirs

PACKAGE = "llama-cpp-python"
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # or the build of the server tries to download a web page
)


def llama_cpp_source() -> Path:
    """Folder of llama.cpp's source, downloaded from the package index on the first call."""
    release = version(PACKAGE)
    folder = platformdirs.user_cache_path("acestep-gguf-bench") / f"{PACKAGE}-{release}"
    source = folder / "vendor" / "llama.cpp"
    if not source.is_dir():
        with tarfile.open(download_source(folder.parent)) as tar:
            tar.extractall(folder.parent, filter="data")
        (folder.parent / f"llama_cpp_python-{release}").rename(folder)
    return source


def download_source(folder: Path) -> Path:
    """The installed llama-cpp-python's source package, from the package index.

    Raises:
        CalledProcessError: pip cannot download it.
    """
    release = version(PACKAGE)
    archive = folder / f"llama_cpp_python-{release}.tar.gz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps", "--no-binary", PACKAGE]
        subprocess.run([*command, "--dest", str(folder), f"{PACKAGE}=={release}"], check=True)
    return archive


def build_tools(names: Sequence[str]) -> dict[str, Path]:
    """Paths of the built programs, such as ``llama-quantize``, by name."""
    source = llama_cpp_source()
    build = source / "build-peers"
    subprocess.run(["cmake", "-S", str(source), "-B", str(build), *CMAKE_FLAGS], check=True)
    jobs = str(os.cpu_count() or 1)
    subprocess.run(["cmake", "--build", str(build), "-j", jobs, "--target", *names], check=True)
    return {name: build / "bin" / name for name in names}
