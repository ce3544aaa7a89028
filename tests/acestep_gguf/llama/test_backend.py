import logging
import subprocess
import sys
from pathlib import Path

import llama_cpp
import pytest

from acestep_gguf.llama.backend import LOGGER, Interrupted, StopFlag, build_id
from acestep_gguf.llama.binding import Model


def test_the_build_is_the_same_in_every_process() -> None:
    code = "from acestep_gguf.llama.backend import build_id; print(build_id())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == build_id()
    assert llama_cpp.__version__ in build_id()
    assert "libllama" in build_id()


def test_what_llama_cpp_logs_is_there_for_whoever_asks(
    decoder_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Model(decoder_file):
        assert not caplog.records
    with caplog.at_level(logging.DEBUG, LOGGER.name), Model(decoder_file):
        assert any("general.architecture" in line for line in caplog.messages)
        assert not any("\n" in line for line in caplog.messages)


def test_a_stop_flag_is_a_string_that_c_finds_empty_until_it_is_set() -> None:
    stop = StopFlag()
    stop.check()
    assert not StopFlag.callback(stop.text)
    stop.set()
    stop.set()
    assert StopFlag.callback(stop.text)
    with pytest.raises(Interrupted):
        stop.check()
