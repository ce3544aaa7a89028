"""The real llama-perplexity, as a program that prints all that it has to say.

python -m scripts.checks.llama_perplexity BIN_FOLDER ARGUMENT...

Its own program ends without waiting for the thread that prints its log, whose end, the figures, is often lost
(https://github.com/ggml-org/llama.cpp/issues/22142). So its library is called, and then that of its log.
"""

import ctypes
import sys
from pathlib import Path
from typing import Final

# C++ names, as GCC and Clang write int(int, char **), common_log * () and void (common_log *).
PERPLEXITY: Final = "_Z16llama_perplexityiPPc"
LOG: Final = "_Z15common_log_mainv"
FLUSH: Final = "_Z16common_log_flushP10common_log"


def main() -> None:
    folder, arguments = Path(sys.argv[1]), ["llama-perplexity", *sys.argv[2:]]
    tool = ctypes.CDLL(str(folder / "libllama-perplexity-impl.so"))
    common = ctypes.CDLL(str(folder / "libllama-common.so"))
    log = common[LOG]
    log.restype = ctypes.c_void_p
    native = (ctypes.c_char_p * (len(arguments) + 1))(*(argument.encode() for argument in arguments), None)
    status = tool[PERPLEXITY](len(arguments), native)
    common[FLUSH](ctypes.c_void_p(log()))
    sys.exit(status)


if __name__ == "__main__":
    main()
