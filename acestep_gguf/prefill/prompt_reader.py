"""Reads long parts of a prompt into a llama.cpp context: onnxruntime computes, llama.cpp takes the result."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle.prefill_info import check_prefill_file
from acestep_gguf.bundle.schema import PrefillFile
from acestep_gguf.errors import BundleError
from acestep_gguf.llama.binding import Context, check_embeds
from acestep_gguf.llama.key_value_state import KeyValueShape, KeyValueState
from acestep_gguf.plan.bundle_model import DecoderModel
from acestep_gguf.plan.decoder_memory import EMBEDDINGS
from acestep_gguf.plan.prefill_memory import LEAST_ROWS
from acestep_gguf.prefill.gguf_rows import GgufRows
from acestep_gguf.prefill.layers import PrefillLayers
from acestep_gguf.prefill.rotation import Rotation

FloatArray = npt.NDArray[np.float32]


class PromptReader:
    """Computes keys and values of many positions at once, in the place of a decoder that they belong to.

    Args:
        layers: of the decoder.
        embeddings: of its tokens.
    """

    def __init__(self, layers: PrefillLayers, embeddings: GgufRows) -> None:
        self._layers = layers
        self._embeddings = embeddings

    @classmethod
    def open(
        cls,
        folder: Path,
        record: PrefillFile,
        decoder: DecoderModel,
        *,
        n_threads: int,
        is_streamed: bool = False,
    ) -> Self:
        """Of the bundle in ``folder``, for one of its decoders.

        Raises:
            BundleError: the files are missing, damaged, or of another decoder.
        """
        layout, shape = check_prefill_file(folder, record), decoder.shape
        expected = shape.n_layer, shape.n_embd, shape.n_head_kv, shape.n_embd_head
        if (layout.n_layers, layout.n_embd, layout.n_head_kv, layout.n_embd_head) != expected:
            raise BundleError(
                f"{layout.path} is not of this decoder: copy the whole bundle, or convert again."
            )
        rotation = Rotation.of(decoder.header, shape.n_embd_head)
        layers = PrefillLayers(
            layout, rotation, n_head=shape.n_head, n_threads=n_threads, is_streamed=is_streamed
        )
        return cls(layers, GgufRows(decoder.header, EMBEDDINGS))

    def close(self) -> None:
        """Free what it reads with; nothing can be read any more."""
        self._layers.close()

    def takes(self, n: int) -> bool:
        """Whether it reads ``n`` positions faster than llama.cpp."""
        return n >= LEAST_ROWS

    def read(self, context: Context, rows: Sequence[int] | FloatArray, *, sequence: int) -> Iterator[None]:
        """Read tokens, or embeds float32 [n, n_embd], behind what a sequence has; a layer at each step.

        The sequence is as it was until the last step is done.

        Raises:
            Interrupted: the context's StopFlag.
            DecodeError: ids or embeds out of range, or onnxruntime or llama.cpp failed.
        """
        if isinstance(rows, np.ndarray):
            check_embeds(rows, context.model.n_embd)
            hidden = np.ascontiguousarray(rows)
        else:
            context.model.check_tokens(rows)
            hidden = self._embeddings.read(rows)
        layout = self._layers.layout
        shape = KeyValueShape.of(
            context,
            n_layers=layout.n_layers,
            n_head_kv=layout.n_head_kv,
            n_embd_head=layout.n_embd_head,
        )
        state = KeyValueState(context, shape, len(rows), sequence=sequence)
        for bid, (keys, values) in enumerate(self._layers.read(hidden, state.n_past, state.past)):
            state.set(bid, keys, values)
            yield
            context.check_stop()
        state.hand_over()
