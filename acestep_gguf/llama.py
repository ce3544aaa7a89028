"""llama.cpp behind four small classes; every ctypes and llama_cpp call of this software is in this file.

llama.cpp ends the process on bad input (an assertion), so each method first checks what it is given.
No object of these classes may be used by two threads at once.
"""

import ctypes
import os
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as lib

from acestep_gguf.errors import DecodeError, UsageError
from acestep_gguf.params import CACHE_TYPES, FLASH_ATTENTION, ContextParams, SamplingParams, check_integer

FloatArray = npt.NDArray[np.float32]

LOAD_MODE_NONE: Final = 0
LOAD_MODE_MMAP: Final = 1
LOG_LEVEL_ERROR: Final = 4  # enum ggml_log_level
LOG_LEVEL_CONTINUE: Final = 5
SEQUENCE: Final = 0  # we only ever use one sequence
PENALTY_LAST_N: Final = 64  # llama.cpp's default window of the repeat penalty


class _Log:
    """Catches what llama.cpp logs, which would otherwise go to stderr, and keeps the last lines."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=256)
        self._errors: deque[str] = deque(maxlen=4)
        self._level = 0
        # ctypes does not keep the callback alive, this attribute does.
        self._callback = lib.llama_log_callback(self._write)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _write(self, level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
        line = text.decode("utf-8", "replace").rstrip("\n")
        self._level = level if level != LOG_LEVEL_CONTINUE else self._level
        self.lines.append(line)
        if self._level == LOG_LEVEL_ERROR and line.strip():
            self._errors.append(line.strip())

    def take_errors(self) -> str:
        """The last error lines since the last call, as one line."""
        errors = "; ".join(self._errors)
        self._errors.clear()
        return errors or "it gave no reason"


_log: _Log | None = None
_backend_lock = threading.Lock()


def _backend() -> _Log:
    """Initialize llama.cpp once per process."""
    global _log  # noqa: PLW0603 (llama.cpp's backend is as global)
    with _backend_lock:
        if _log is None:
            _log = _Log()
            lib.llama_backend_init()
    return _log


class _Handle:
    """A native object that is freed once."""

    def __init__(self, pointer: Any) -> None:
        self._pointer = pointer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Free the native object; a second call does nothing."""
        pointer, self._pointer = getattr(self, "_pointer", None), None
        if pointer is not None:
            self._free(pointer)

    def _free(self, pointer: Any) -> None:
        raise NotImplementedError

    @property
    def pointer(self) -> Any:
        """The native object.

        Raises:
            UsageError: closed.
        """
        if self._pointer is None:
            raise UsageError(f"this {type(self).__name__} is closed: make a new one.")
        return self._pointer


class Model(_Handle):
    """The weights and the vocabulary of a decoder.

    Args:
        path: a GGUF file whose header was checked (see decoder_info).
        n_gpu_layers: layers to keep on a GPU, -1 for all.
        use_mmap: map the file instead of reading it.
        use_extra_bufts: repack weights for the CPU while loading (llama.cpp's ``--repack``).

    Raises:
        UsageError: layers on a GPU that llama.cpp does not have.
        DecodeError: llama.cpp refuses the file.
    """

    def __init__(
        self, path: Path, *, n_gpu_layers: int = 0, use_mmap: bool = True, use_extra_bufts: bool = True
    ) -> None:
        log = _backend()
        check_integer("n_gpu_layers", n_gpu_layers, -1, 2**31 - 1)
        if n_gpu_layers and not lib.llama_supports_gpu_offload():
            raise UsageError(
                "this llama-cpp-python was built without a GPU: build it with one, or use no layers."
            )
        params = lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.load_mode = LOAD_MODE_MMAP if use_mmap else LOAD_MODE_NONE
        params.use_extra_bufts = use_extra_bufts
        log.take_errors()
        pointer = lib.llama_model_load_from_file(os.fsencode(path), params)
        super().__init__(pointer)
        if pointer is None:
            raise DecodeError(f"llama.cpp cannot load {path}: {log.take_errors()}.")
        self._vocab = lib.llama_model_get_vocab(pointer)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        self.n_embd: int = lib.llama_model_n_embd(pointer)
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(pointer)

    def _free(self, pointer: Any) -> None:
        lib.llama_model_free(pointer)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of ``text``; nothing in it becomes a control token and none is added."""
        data = text.encode()
        tokens = (ctypes.c_int32 * (len(data) + 1))()  # byte-level BPE: at most one token a byte
        _ = self.pointer
        count = lib.llama_tokenize(self._vocab, data, len(data), tokens, len(tokens), False, False)
        if count < 0:
            raise DecodeError(f"llama.cpp cannot tokenize a text of {len(data)} bytes.")
        return tokens[:count]

    def token_bytes(self, token: int) -> bytes:
        """Text of a token, which may end inside a UTF-8 character; empty for a control token."""
        self.check_tokens([token])
        buffer = ctypes.create_string_buffer(64)
        length = lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:length]

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Refuse ids outside the vocabulary.

        Raises:
            DecodeError: there is one.
        """
        _ = self.pointer
        if tokens and not (min(tokens) >= 0 and max(tokens) < self.n_vocab):
            raise DecodeError(f"a token id lies outside the vocabulary of {self.n_vocab}: check who made it.")


class Context(_Handle):
    """A KV cache and what computes on it.

    Raises:
        DecodeError: llama.cpp cannot make it, for want of memory for instance.
    """

    def __init__(self, model: Model, params: ContextParams) -> None:
        self.model = model
        self.params = params
        native = lib.llama_context_default_params()
        native.n_ctx = params.n_ctx
        native.n_batch = self.n_batch = min(params.n_batch, params.n_ctx)
        native.n_ubatch = min(params.n_ubatch, self.n_batch)
        native.n_outputs_max = params.n_outputs_max
        native.n_threads = params.n_threads
        native.n_threads_batch = params.n_threads_batch
        native.type_k = CACHE_TYPES[params.type_k]
        native.type_v = CACHE_TYPES[params.type_v]
        native.flash_attn_type = FLASH_ATTENTION[params.flash_attn]
        native.no_perf = True
        log = _backend()
        log.take_errors()
        pointer = lib.llama_init_from_model(model.pointer, native)
        super().__init__(pointer)
        if pointer is None:
            raise DecodeError(
                f"llama.cpp cannot make a context of {params.n_ctx} tokens: {log.take_errors()}; "
                "try a smaller --ctx-size."
            )
        self._memory = lib.llama_get_memory(pointer)
        self._batch = _Batch(self.n_batch)
        self._n_outputs = 0

    def _free(self, pointer: Any) -> None:
        lib.llama_free(pointer)

    def decode_tokens(self, tokens: Sequence[int], position: int, *, n_outputs: int = 0) -> None:
        """Compute up to ``n_batch`` tokens from ``position`` on; the last ``n_outputs`` give logits.

        Raises:
            DecodeError: ids, positions or counts out of range, or llama.cpp failed.
        """
        self.model.check_tokens(tokens)
        self._check_range(len(tokens), position, n_outputs)
        self._decode(self._batch.tokens(np.asarray(tokens, np.int32), position, n_outputs), n_outputs)

    def decode_embeds(self, embeds: FloatArray, position: int, *, n_outputs: int = 0) -> None:
        """The same with ``embeds``, float32 [n, n_embd], in the place of token embeddings.

        Raises:
            DecodeError: shape, dtype, values, positions or counts out of range, or llama.cpp failed.
        """
        check_embeds(embeds, self.model.n_embd)
        self._check_range(len(embeds), position, n_outputs)
        self._decode(self._batch.embeds(np.ascontiguousarray(embeds), position, n_outputs), n_outputs)

    def logits(self, index: int = -1) -> FloatArray:
        """Logits, float32 [n_vocab], of one of the outputs of the last call; -1 is the last.

        Raises:
            DecodeError: there is no such output, or a logit is not finite.
        """
        if not -self._n_outputs <= index < 0:
            raise DecodeError(f"output {index} was not asked for in the last call.")
        view = lib.llama_get_logits_ith(self.pointer, index)
        logits = np.ctypeslib.as_array(view, (self.model.n_vocab,)).copy()
        if not np.isfinite(logits).all():
            raise DecodeError("the decoder computed logits that are not finite: its weights are damaged.")
        return logits

    def keep(self, n_past: int) -> None:
        """Forget everything from position ``n_past`` on; 0 forgets all."""
        if n_past <= 0:
            lib.llama_memory_clear(self._checked_memory(), True)
        elif not lib.llama_memory_seq_rm(self._checked_memory(), SEQUENCE, n_past, -1):
            raise DecodeError(f"llama.cpp cannot shorten its context to {n_past} tokens.")

    def _checked_memory(self) -> Any:
        _ = self.pointer
        return self._memory

    def _check_range(self, count: int, position: int, n_outputs: int) -> None:
        n_past = lib.llama_memory_seq_pos_max(self._checked_memory(), SEQUENCE) + 1
        if position != n_past:
            raise DecodeError(f"position {position} does not follow the {n_past} that were computed.")
        if not 1 <= count <= self.n_batch or position + count > self.params.n_ctx:
            raise DecodeError(f"{count} tokens from {position} on fit neither n_batch nor n_ctx.")
        if not 0 <= n_outputs <= min(count, self.params.n_outputs_max):
            raise DecodeError(f"{n_outputs} outputs of {count} tokens were asked for.")

    def _decode(self, batch: Any, n_outputs: int) -> None:
        log = _backend()
        log.take_errors()
        self._n_outputs = 0
        status = lib.llama_decode(self.pointer, batch)
        if status != 0:
            raise DecodeError(f"llama.cpp failed to decode (status {status}): {log.take_errors()}.")
        self._n_outputs = n_outputs


class _Batch:
    """The arrays that llama_batch points to, made once for up to ``capacity`` positions of one sequence."""

    def __init__(self, capacity: int) -> None:
        self._positions = np.zeros(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        self._n_seq_id = np.ones(capacity, np.int32)
        self._sequence = ctypes.c_int32(SEQUENCE)
        sequences = [ctypes.pointer(self._sequence)] * capacity
        self._seq_id = (ctypes.POINTER(ctypes.c_int32) * capacity)(*sequences)
        self._input: npt.NDArray[Any] = self._positions  # whatever the last batch points to, kept alive

    def tokens(self, tokens: npt.NDArray[np.int32], position: int, n_outputs: int) -> Any:
        batch = self._filled(tokens, position, n_outputs)
        batch.token = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        return batch

    def embeds(self, embeds: FloatArray, position: int, n_outputs: int) -> Any:
        batch = self._filled(embeds, position, n_outputs)
        batch.embd = embeds.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        return batch

    def _filled(self, rows: npt.NDArray[Any], position: int, n_outputs: int) -> Any:
        count = len(rows)
        self._input = rows
        self._positions[:count] = np.arange(position, position + count, dtype=np.int32)
        self._outputs[:count] = 0
        self._outputs[count - n_outputs : count] = 1
        return lib.llama_batch(
            n_tokens=count,
            pos=self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            n_seq_id=self._n_seq_id.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._seq_id,
            logits=self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )


def check_embeds(embeds: FloatArray, n_embd: int) -> None:
    """Check embeds that are about to be fed to a decoder: float32 [n, n_embd], n > 0, finite.

    Raises:
        DecodeError: they are not.
    """
    if embeds.dtype != np.float32 or embeds.ndim != 2 or embeds.shape[1] != n_embd or len(embeds) == 0:
        raise DecodeError(
            f"embeds are {embeds.dtype} {embeds.shape}, this decoder takes float32 (n, {n_embd})."
        )
    if not np.isfinite(embeds).all():
        raise DecodeError("embeds are not finite: the vision tower or its input is damaged.")


class Sampler(_Handle):
    """llama.cpp's sampler chain, in its usual order: penalties, top-k, top-p, min-p, temperature, draw."""

    def __init__(self, model: Model, params: SamplingParams) -> None:
        _backend()
        super().__init__(lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params()))
        self._model = model
        if params.repeat_penalty != 1.0:
            penalty = (model.n_vocab, PENALTY_LAST_N, params.repeat_penalty, 0.0, 0.0)
            self._add(lib.llama_sampler_init_penalties(*penalty))
        if params.temperature == 0.0:
            self._add(lib.llama_sampler_init_greedy())
            return
        self._add(lib.llama_sampler_init_top_k(params.top_k))
        self._add(lib.llama_sampler_init_top_p(params.top_p, 1))
        self._add(lib.llama_sampler_init_min_p(params.min_p, 1))
        self._add(lib.llama_sampler_init_temp(params.temperature))
        self._add(lib.llama_sampler_init_dist(0xFFFFFFFF if params.seed is None else params.seed))

    def _free(self, pointer: Any) -> None:
        lib.llama_sampler_free(pointer)

    def _add(self, sampler: Any) -> None:
        lib.llama_sampler_chain_add(self.pointer, sampler)  # the chain owns and frees it

    def accept(self, tokens: Sequence[int]) -> None:
        """Show tokens of the prompt to the repeat penalty."""
        self._model.check_tokens(tokens)
        for token in tokens:
            lib.llama_sampler_accept(self.pointer, token)

    def sample(self, context: Context) -> int:
        """Choose and accept the next token from the last logits.

        Raises:
            DecodeError: there are no logits, or they are not finite.
        """
        context.logits()
        token: int = lib.llama_sampler_sample(self.pointer, context.pointer, -1)
        return token
