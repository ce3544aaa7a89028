"""ggml's RPC backend for a llama.cpp that was built without it, compiled in seconds for checks and tests.

Users build llama.cpp with it (docs/scale.md).
"""

import subprocess
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Final

from filelock import FileLock

from acestep_gguf.llama.library import FOLDER
from acestep_gguf.llama.rpc.backend import LIBRARY
from scripts.bench.llama_cpp_tools import download_source

BUILD: Final = Path(__file__).parents[2] / "build/rpc"
RPC_FILES: Final = ("ggml-rpc.cpp", "transport.cpp")
CARD: Final = Path(__file__).with_name("played_card.cpp")


def rpc_library() -> Path:
    """The backend, in a folder for LLAMA_CPP_LIB_PATH, where links to the installed libraries are beside it.

    It plays cards, too (see played_card.py). The first call downloads the source and takes some ten seconds.

    Raises:
        CalledProcessError: there is no source package, or it does not compile.
        OSError: there is no compiler.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    library = BUILD / LIBRARY
    built_from = max(path.stat().st_mtime for path in (CARD, *FOLDER.glob("libggml*")))
    with FileLock(BUILD / "lock"):
        if not library.exists() or library.stat().st_mtime < built_from:
            _compile(library)
    return library


def _compile(library: Path) -> None:
    for path in FOLDER.iterdir():
        link = BUILD / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(download_source(Path(folder))) as tar:
        ggml = f"llama_cpp_python-{version('llama-cpp-python')}/vendor/llama.cpp/ggml"
        members = [member for member in tar if _is_needed(member.name, ggml)]
        tar.extractall(folder, members, filter="data")
        include, source = Path(folder, ggml, "include"), Path(folder, ggml, "src")
        made = library.with_suffix(".tmp")
        command = ["c++", "-O2", "-std=c++17", "-fPIC", "-shared"]
        command += [f"-D{name}" for name in ("GGML_SHARED", "GGML_BACKEND_SHARED", "GGML_BACKEND_DL")]
        command += [f"-I{path}" for path in (include, source, source / "ggml-rpc")]
        command += [*(str(source / "ggml-rpc" / name) for name in RPC_FILES), str(CARD), "-o", str(made)]
        command += [f"-L{FOLDER}", "-lggml", "-lggml-base", "-pthread"]
        subprocess.run(command, check=True)
        made.replace(library)


def _is_needed(name: str, ggml: str) -> bool:
    is_ours = name.startswith((f"{ggml}/include/", f"{ggml}/src/"))
    return is_ours and (name.endswith(".h") or name.rpartition("/")[2] in RPC_FILES)
