"""The decoder's memory after the last picture of a prompt, kept on disk for the next question about it."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle.names import BUNDLE_FILE
from acestep_gguf.llama.backend import build_id
from acestep_gguf.llama.binding import Context
from acestep_gguf.llama.params import ContextParams, ModelParams
from acestep_gguf.ort_builds import ort_version
from acestep_gguf.prompt.segments import ImageInput, Segment
from acestep_gguf.storage.disk_cache import DiskCache
from acestep_gguf.storage.file_identity import file_identity

UInt8Array = npt.NDArray[np.uint8]


# Settings that change neither the state of a position nor how it lies in the file. Threads are none of them:
# llama.cpp's flash attention over a single position is summed up thread by thread.
NO_MATTER: Final = ("n_ctx", "n_seq_max", "n_outputs_max", "use_mmap", "use_mlock")


def decoder_facts(
    path: Path, loading: ModelParams, params: ContextParams, *, has_int8_layers: bool = False
) -> dict[str, Any]:
    """What decides which numbers a decoder computes, beside what it reads.

    Args:
        path: of the decoder, in its bundle.
        loading: how it was loaded.
        params: of its context.
        has_int8_layers: the bundle's read long parts of prompts.
    """
    settings = asdict(loading) | asdict(params)
    return {
        "bundle": hashlib.sha256((path.parent / BUNDLE_FILE).read_bytes()).hexdigest(),
        "decoder": file_identity(path),
        "llama.cpp": build_id(),
        "acestep-gguf": version("acestep-gguf"),
        "reader": ort_version() if has_int8_layers else None,
        "settings": {name: value for name, value in settings.items() if name not in NO_MATTER},
    }


class KVStates:
    """States under the hash of all that they come from.

    Args:
        cache: where they are kept.
        made_by: all that changes the numbers or their layout, but what is read: the decoder, llama.cpp's
            build, the settings of the context. Anything that JSON can write.
    """

    def __init__(self, cache: DiskCache, made_by: Any) -> None:
        self._cache = cache
        self._made_by = msgspec.json.encode(made_by, order="sorted")

    def load(self, prompt: Sequence[Segment]) -> UInt8Array | None:
        """The state after ``prompt``, for ``Context.restore``, or None if it is not kept."""
        return self._cache.get(self.name(prompt))

    def take(self, context: Context, prompt: Sequence[Segment], *, sequence: int = 0) -> None:
        """Copy the state of a sequence, which is after ``prompt``; it is written when the cache writes."""
        if self._cache.takes(context.state_bytes(sequence=sequence)):
            self._cache.finish_writing()  # a plan has room for one copy
            self._cache.put(self.name(prompt), context.state(sequence=sequence))

    def name(self, prompt: Sequence[Segment]) -> str:
        """Name of the entry with the state after ``prompt``."""
        # Each part is preceded by what it is and how long, so that no two prompts look the same.
        digest = hashlib.sha256(b"state 1 %d " % len(self._made_by) + self._made_by)
        for segment in prompt:
            if isinstance(segment, ImageInput):
                digest.update(b"image %d %d " % (segment.n_tokens, len(segment.key)) + segment.key)
            else:
                digest.update(b"tokens %d " % len(segment) + np.asarray(segment, "<i4").tobytes())
        return f"state-{digest.hexdigest()}"
