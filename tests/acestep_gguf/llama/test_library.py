import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import llama_cpp
import pytest
from gguf import GGMLQuantizationType as QType

from acestep_gguf.llama.library import ggml_function
from tests.support.gguf_files import retype

# Everything that calls llama.cpp or ggml, and then the files of their libraries that were mapped.
USES_ALL = """
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as QType

from acestep_gguf.llama.backend import build_id
from acestep_gguf.llama.binding import Model
from acestep_gguf.llama.devices import gpu_devices
from acestep_gguf.llama.params import ModelParams
from acestep_gguf.quantize.ggml import dequantize_rows, quantize_rows

gpu_devices()
dequantize_rows(quantize_rows(np.ones((1, 256), np.float32), QType.Q4_K), QType.Q4_K)
Model(Path(sys.argv[1]), ModelParams(cpu_tensors=("ffn",)))
assert str(Path(sys.argv[2], "libllama.so").stat().st_mtime_ns) in build_id()
lines = [line.split(maxsplit=5) for line in open("/proc/self/maps")]
print("\\n".join({line[5].strip() for line in lines if "/libggml" in line[-1] or "/libllama" in line[-1]}))
"""

CRASHES = """
import sys
from pathlib import Path

from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.params import ContextParams

params = ContextParams(n_ctx=32, n_threads=8, n_threads_batch=8)
with Model(Path(sys.argv[1])) as model, Context(model, params) as context:
    context.decode_tokens(list(range(8)), 0)
"""

# Writes an answer with libraries of the folder; from a folder of its own, since llama.cpp looks there, too.
ANSWERS = """
import sys

from acestep_gguf import AceStep
from acestep_gguf.llama.devices import gpu_devices

assert gpu_devices() == []
with AceStep(sys.argv[1], quant="F32", n_ctx=256, n_threads=1) as model:
    print(model.generate("Who?", max_tokens=8, temperature=0).tokens)
"""

# The build's CPU is made a library that is loaded at run time: what libggml is linked to gives no CPU, and
# what it is to find has the functions by which it asks for one.
NO_CPU = "void *ggml_backend_cpu_reg(void) { return 0; }"
LOADED_CPU = """
#include <dlfcn.h>
int ggml_backend_score(void) { return 1; }
void *ggml_backend_init(void) {
    void *library = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
    return ((void *(*)(void)) dlsym(library, "ggml_backend_cpu_reg"))();
}
"""

SHIPPED = Path(llama_cpp.__file__).parent / "lib"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
@pytest.mark.parametrize("is_copied", [False, True])
def test_each_library_is_loaded_once_and_from_the_folder_that_was_chosen(
    decoder_file: Path, tmp_path: Path, is_copied: bool
) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "LLAMA_CPP_LIB_PATH"}
    folder = SHIPPED
    if is_copied:
        folder = tmp_path / "libraries"
        shutil.copytree(SHIPPED, folder)
        environment["LLAMA_CPP_LIB_PATH"] = str(folder)
    command = [sys.executable, "-c", USES_ALL, str(decoder_file), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    mapped = [Path(line) for line in done.stdout.splitlines()]
    assert {path.parent for path in mapped} == {folder}
    libraries = sorted(path.name.partition(".")[0] for path in mapped)
    assert libraries == ["libggml", "libggml-base", "libggml-cpu", "libllama"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux links so")
def test_a_cpu_in_a_library_of_its_own_is_found_in_the_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "libraries"
    shutil.copytree(SHIPPED, folder)
    real = tmp_path / "cpu.so"
    (folder / "libggml-cpu.so.0").resolve().rename(real)
    for path in folder.glob("libggml-cpu.*"):
        path.unlink()
    compile_library(NO_CPU, folder / "libggml-cpu.so.0")
    compile_library(f'#define REAL "{real}"\n{LOADED_CPU}', folder / "libggml-cpu-one.so")

    printed = []
    for libraries in (SHIPPED, folder):
        environment = {**os.environ, "LLAMA_CPP_LIB_PATH": str(libraries)}
        command = [sys.executable, "-c", ANSWERS, str(tiny_bundle)]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        printed.append(done.stdout)
    assert printed[0] == printed[1]


def compile_library(source: str, path: Path) -> None:
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{path.name}", "-o", str(path), "-ldl"]
    subprocess.run(command, input=source, text=True, check=True)


def test_a_failed_assertion_ends_the_process_at_once(decoder_file: Path, tmp_path: Path) -> None:
    """All eight threads fail at once: with ggml's own stack trace they would wait for each other for ever."""
    path = retype(decoder_file, tmp_path / "decoder.gguf", {"blk.0.attn_norm.weight": QType.I32})
    environment = {key: value for key, value in os.environ.items() if key != "GGML_NO_BACKTRACE"}
    command = [sys.executable, "-c", CRASHES, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGABRT
    lines = [line for line in done.stderr.splitlines() if line]
    assert lines
    assert all("unsupported types" in line for line in lines)


def test_a_function_that_ggml_does_not_have() -> None:
    with pytest.raises(AttributeError, match="no function ggml_dance"):
        ggml_function("ggml_dance", None)
