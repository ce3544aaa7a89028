"""The decoder's layers in onnxruntime: hidden states in, keys and values of each layer out.

One graph of one layer serves all of them: each layer's weights are given to it where they lie in the mapped
file, so that no more of them need be in memory than the system finds room for.
"""

import mmap
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from acestep_gguf.bundle.prefill_info import (
    COS_CACHE,
    HIDDEN_STATES,
    INT8,
    KEY,
    OUTPUT,
    PAST_KEY,
    PAST_VALUE,
    SEQLENS_K,
    SIN_CACHE,
    TOTAL_SEQUENCE_LENGTH,
    VALUE,
    PrefillLayout,
)
from acestep_gguf.errors import BundleError, DecodeError
from acestep_gguf.ort_session import ORT_ERRORS, first_line, session_options
from acestep_gguf.plan.prefill_memory import rows_at_once
from acestep_gguf.prefill.rotation import Rotation

FloatArray = npt.NDArray[np.float32]
KeysAndValues = tuple[FloatArray, FloatArray]

DAMAGED: Final = "the decoder's int8 layers are damaged ({}): copy the bundle again."


class PrefillLayers:
    """The layers, ready to compute.

    Args:
        layout: of the files, checked.
        rotation: of queries and keys.
        n_head: attention heads.
        n_threads: that compute.
        is_streamed: let the system drop each layer's weights when its turn is over.

    Raises:
        BundleError: onnxruntime cannot load the graph.
    """

    def __init__(
        self, layout: PrefillLayout, rotation: Rotation, *, n_head: int, n_threads: int, is_streamed: bool
    ) -> None:
        self.layout = layout
        self._is_streamed = is_streamed
        self._rotation = rotation
        self._n_head = n_head
        try:
            self._session = ort.InferenceSession(
                layout.path.read_bytes(), session_options(n_threads), providers=["CPUExecutionProvider"]
            )
        except ORT_ERRORS as error:
            raise BundleError(
                f"onnxruntime cannot load {layout.path} ({first_line(error)}): convert again."
            ) from error
        with layout.data.open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._tables = rotation.tables(0)

    def read(
        self, hidden: FloatArray, n_past: int, past: Callable[[int], KeysAndValues]
    ) -> Iterator[KeysAndValues]:
        """Keys and values of each layer, float32 [1, n_head_kv, n, n_embd_head] each.

        Args:
            hidden: embeddings of ``n`` positions, float32 [n, n_embd].
            n_past: positions before them.
            past: gives keys and values of these in a layer, [1, n_head_kv, n_past, n_embd_head].

        Raises:
            DecodeError: onnxruntime failed, or the numbers are not finite, or not as many as they should be.
        """
        n = len(hidden)
        if len(self._tables[0]) < n_past + n:
            self._tables = self._rotation.tables(n_past + n)
        cuts = [*range(0, n, rows_at_once(self._n_head, n_past + n)), n]
        hidden = hidden[np.newaxis]
        for bid in range(self.layout.n_layers):
            weights = self._weights(bid)
            keys, values = past(bid)
            outputs = []
            for first, end in pairwise(cuts):
                output, keys, values = self._run(weights, hidden[:, first:end], keys, values, n_past + end)
                outputs.append(output)
            hidden = outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=1)
            if self._is_streamed:
                self._leave(bid)
            yield keys[:, :, n_past:], values[:, :, n_past:]
        if not np.isfinite(hidden).all():
            raise DecodeError(DAMAGED.format("their numbers are not finite"))

    def close(self) -> None:
        """Free the session; the weights, too, as soon as nobody reads them. Nothing can be read any more."""
        del self._session, self._mapped

    def _run(
        self, weights: dict[str, Any], hidden: FloatArray, keys: FloatArray, values: FloatArray, n_total: int
    ) -> list[FloatArray]:
        cos, sin = self._tables
        states = {
            HIDDEN_STATES: hidden,
            PAST_KEY: keys,
            PAST_VALUE: values,
            SEQLENS_K: np.array([n_total - 1], np.int32),
            TOTAL_SEQUENCE_LENGTH: np.array(n_total, np.int32),
            COS_CACHE: cos,
            SIN_CACHE: sin,
        }
        try:
            found: list[FloatArray] = self._session.run([OUTPUT, KEY, VALUE], states | weights)
        except ORT_ERRORS as error:
            raise DecodeError(f"onnxruntime failed on a prompt ({first_line(error)}).") from error
        n_tokens, n_embd = hidden.shape[1:]
        states_shape = (1, self.layout.n_head_kv, n_total, self.layout.n_embd_head)
        shapes = [(1, n_tokens, n_embd), states_shape, states_shape]
        if [one.shape for one in found] != shapes or any(one.dtype != np.float32 for one in found):
            raise DecodeError(DAMAGED.format("they give something else than keys and values"))
        return found

    def _weights(self, bid: int) -> dict[str, Any]:
        """The weights of a layer, where they are mapped."""
        return {
            weight.name: np.frombuffer(
                self._mapped,
                np.int8 if weight.data_type == INT8 else np.float32,
                int(np.prod(weight.shape)),
                bid * self.layout.stride + weight.offset,
            ).reshape(weight.shape)
            for weight in self.layout.weights
        }

    def _leave(self, bid: int) -> None:
        """Let the system drop a layer's pages, and fetch the next one's."""
        last = self.layout.n_layers - 1
        for layer, advice in ((bid, mmap.MADV_DONTNEED), (min(bid + 1, last), mmap.MADV_WILLNEED)):
            start = layer * self.layout.stride // mmap.PAGESIZE * mmap.PAGESIZE
            end = (layer + 1) * self.layout.stride
            self._mapped.madvise(advice, start, end - start)
