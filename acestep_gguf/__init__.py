"""Makes a small GGUF + ONNX bundle of a vision-language checkpoint, and answers questions about pictures.

The names below are imported when they are first used, so that ``import acestep_gguf`` costs nothing.
"""

import os
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from acestep_gguf.answer import Answer, Chunk, Timings, Usage
    from acestep_gguf.engine.batch import Outcome
    from acestep_gguf.engine.engine import AceStep
    from acestep_gguf.engine.likelihood import Likelihood
    from acestep_gguf.engine.question import Question
    from acestep_gguf.errors import AceStepError
    from acestep_gguf.options import AnswerOptions, EngineOptions
    from acestep_gguf.progress import Progress
    from acestep_gguf.vision.embeds_file import EmbedsFile
    from acestep_gguf.vision.image_file import pdf_pages

    __version__: str

__all__ = [
    "AceStep",
    "AceStepError",
    "Answer",
    "AnswerOptions",
    "Chunk",
    "EmbedsFile",
    "EngineOptions",
    "Likelihood",
    "Outcome",
    "Progress",
    "Question",
    "Timings",
    "Usage",
    "pdf_pages",
]

_MODULES = {
    "AceStep": "engine.engine",
    "AceStepError": "errors",
    "Answer": "answer",
    "AnswerOptions": "options",
    "Chunk": "answer",
    "EmbedsFile": "vision.embeds_file",
    "EngineOptions": "options",
    "Likelihood": "engine.likelihood",
    "Outcome": "engine.batch",
    "Progress": "progress",
    "Question": "engine.question",
    "Timings": "answer",
    "Usage": "answer",
    "pdf_pages": "vision.image_file",
}

# While it is imported, onnxruntime writes a database of events into the user's cache folder, and some seconds
# later looks up a host of its maker, unless this variable is set. disable_telemetry_events() comes too late.
_NO_TELEMETRY: Final = "ORT_DISABLE_TELEMETRY"
if _NO_TELEMETRY not in os.environ:
    if "onnxruntime" in sys.modules:
        warnings.warn(
            "onnxruntime was imported before acestep_gguf, so its telemetry is on: "
            f"set {_NO_TELEMETRY}=1, or import acestep_gguf first.",
            stacklevel=2,
        )
    os.environ[_NO_TELEMETRY] = "1"


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 (as slow as all else here)

        return version("acestep-gguf")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
