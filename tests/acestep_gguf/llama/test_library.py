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
