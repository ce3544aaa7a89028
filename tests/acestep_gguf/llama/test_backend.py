import subprocess
import sys

import llama_cpp
import pytest

from acestep_gguf.llama.backend import Interrupted, StopFlag, build_id


def test_the_build_is_the_same_in_every_process() -> None:
    code = "from acestep_gguf.llama.backend import build_id; print(build_id())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == build_id()
    assert llama_cpp.__version__ in build_id()
    assert "libllama" in build_id()


def test_a_stop_flag_is_a_string_that_c_finds_empty_until_it_is_set() -> None:
    stop = StopFlag()
    stop.check()
    assert not StopFlag.callback(stop.text)
    stop.set()
    stop.set()
    assert StopFlag.callback(stop.text)
    with pytest.raises(Interrupted):
        stop.check()
