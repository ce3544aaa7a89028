"""Makes a small GGUF + ONNX bundle of a LLaVA-layout checkpoint, and answers questions about pictures.

The names below are imported when they are first used, so that ``import acestep_gguf`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acestep_gguf.answer import Answer, Chunk, Timings, Usage
    from acestep_gguf.engine.engine import AceStep
    from acestep_gguf.errors import AceStepError
    from acestep_gguf.vision.embeds_file import EmbedsFile

__all__ = ["AceStep", "AceStepError", "Answer", "Chunk", "EmbedsFile", "Timings", "Usage"]

_MODULES = {
    "AceStep": "engine.engine",
    "AceStepError": "errors",
    "Answer": "answer",
    "Chunk": "answer",
    "EmbedsFile": "vision.embeds_file",
    "Timings": "answer",
    "Usage": "answer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
